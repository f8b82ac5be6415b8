//! Asking a running child how it does.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::HOST,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k3s_http::{Answer, exchange};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::program::Probe;

/// Enough of a `/readyz` to name what fails.
const BODY: usize = 16 * 1024;

/// A [`Probe`] that asks over the network, with its certificates read.
#[derive(Debug)]
pub(crate) struct Prober {
    question: Question,
}

#[derive(Debug)]
enum Question {
    Http { address: SocketAddr, path: String, tls: Option<Arc<ClientConfig>> },
    Grpc { socket: PathBuf },
}

/// Why the answer is not yes. `question` is like `GET https://127.0.0.1:6444/readyz`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("{}: {source}", path.display())]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{}: {source}", path.display())]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("{question}: {source}")]
    Connect { question: String, source: io::Error },
    #[error("{question}: {source}")]
    Http { question: String, source: hyper::Error },
    #[error("{question}: {answer}")]
    No { question: String, answer: String },
    #[error("{question}: no answer for {after:?}")]
    Timeout { question: String, after: Duration },
}

impl Prober {
    /// Reads the certificates that `probe` names; `None` where there is nothing to ask.
    pub(crate) fn new(probe: &Probe) -> Result<Option<Self>, ProbeError> {
        let question = match probe {
            Probe::Started => return Ok(None),
            Probe::Http { address, path } => Question::Http { address: *address, path: path.clone(), tls: None },
            Probe::Https { address, path, ca, identity } => {
                let tls = Some(Arc::new(client_config(ca, identity.as_ref())?));
                Question::Http { address: *address, path: path.clone(), tls }
            }
            Probe::UnixSocket { path } => Question::Grpc { socket: path.clone() },
        };
        Ok(Some(Self { question }))
    }

    /// Asks once, on a connection of its own.
    pub(crate) async fn ask(&self, within: Duration) -> Result<(), ProbeError> {
        let asked = match &self.question {
            Question::Http { address, path, tls } => timeout(within, self.get(*address, path, tls.as_ref())).await,
            Question::Grpc { socket } => timeout(within, self.check(socket)).await,
        };
        asked.unwrap_or_else(|_| Err(ProbeError::Timeout { question: self.question.to_string(), after: within }))
    }

    async fn get(&self, address: SocketAddr, path: &str, tls: Option<&Arc<ClientConfig>>) -> Result<(), ProbeError> {
        let stream = TcpStream::connect(address).await.map_err(|source| self.unreachable(source))?;
        let request = Request::get(path)
            .header(HOST, address.to_string())
            .body(Full::<Bytes>::default())
            .map_err(|error| self.no(format!("cannot be asked: {error}")))?;
        let (status, body) = match tls {
            None => self.exchange(stream, request).await?,
            Some(config) => {
                let connector = TlsConnector::from(config.clone());
                let name = ServerName::IpAddress(address.ip().into());
                let stream = connector.connect(name, stream).await.map_err(|source| self.unreachable(source))?;
                self.exchange(stream, request).await?
            }
        };
        if status.is_success() { Ok(()) } else { Err(self.no(refusal(status, &String::from_utf8_lossy(&body)))) }
    }

    async fn exchange<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ProbeError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let Answer { status, body } =
            exchange(TokioIo::new(stream), request, BODY).await.map_err(|source| self.broken(source))?;
        // Where it breaks off or is longer than anything we read, the status alone is the answer.
        Ok((status, body.unwrap_or_default()))
    }

    /// `grpc.health.v1.Health/Check` for the whole server. Whoever answers in HTTP/2 but does not know it counts as healthy.
    async fn check(&self, socket: &Path) -> Result<(), ProbeError> {
        let stream = UnixStream::connect(socket).await.map_err(|source| self.unreachable(source))?;
        let request = Request::post(Uri::from_static("http://localhost/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // An uncompressed message of no bytes: the empty service name.
            .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])))
            .map_err(|error| self.no(format!("cannot be asked: {error}")))?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|source| self.broken(source))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            Ok(body_of(response).await)
        };
        let body = tokio::select! {
            answer = answer => answer,
            ended = connection => match ended {
                Ok(()) => return Err(self.no("closed the connection".into())),
                Err(error) => Err(error),
            },
        };
        let body = body.map_err(|source| self.broken(source))?;
        match serving_status(&body) {
            None | Some(SERVING) => Ok(()),
            Some(other) => Err(self.no(format!("not serving (status {other})"))),
        }
    }

    fn no(&self, answer: String) -> ProbeError {
        ProbeError::No { question: self.question.to_string(), answer }
    }

    fn unreachable(&self, source: io::Error) -> ProbeError {
        ProbeError::Connect { question: self.question.to_string(), source }
    }

    fn broken(&self, source: hyper::Error) -> ProbeError {
        ProbeError::Http { question: self.question.to_string(), source }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { address, path, tls: None } => write!(f, "GET http://{address}{path}"),
            Self::Http { address, path, tls: Some(_) } => write!(f, "GET https://{address}{path}"),
            Self::Grpc { socket } => write!(f, "gRPC on {}", socket.display()),
        }
    }
}

fn client_config(ca: &Path, identity: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig, ProbeError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|source| ProbeError::Certificate { path: ca.to_owned(), source })?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both protocol versions")
        .with_root_certificates(roots);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let secret =
                PrivateKeyDer::from_pem_file(key).map_err(|source| ProbeError::Pem { path: key.clone(), source })?;
            builder
                .with_client_auth_cert(certificates(certificate)?, secret)
                .map_err(|source| ProbeError::Certificate { path: certificate.clone(), source })
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ProbeError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| ProbeError::Pem { path: path.to_owned(), source })
}

/// The body, or none of it where it breaks off or is longer than anything we read.
async fn body_of(response: Response<Incoming>) -> Bytes {
    Limited::new(response.into_body(), BODY).collect().await.map(Collected::to_bytes).unwrap_or_default()
}

/// A `no` in short. Kubernetes' `/readyz` lists its checks, the failing ones as `[-]name failed: reason withheld`.
fn refusal(status: StatusCode, body: &str) -> String {
    let failing: Vec<_> =
        body.lines().filter_map(|line| line.strip_prefix("[-]")?.split_whitespace().next()).take(3).collect();
    let code = status.as_u16();
    if failing.is_empty() {
        format!("answers {code}")
    } else {
        format!("answers {code}, not ready: {}", failing.join(", "))
    }
}

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u8 = 1;

/// Field 1 of a `HealthCheckResponse` in its gRPC frame; `None` where the service is not known.
fn serving_status(body: &[u8]) -> Option<u8> {
    match body {
        [] => None,
        // A frame's length, then the field's tag and its value; the default value, unknown, is left out.
        [0, _, _, _, _, 0x08, status] => Some(*status),
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::{server::conn, service::service_fn};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// What `probe` says while `server` runs.
    async fn ask(probe: Probe, server: impl Future<Output = ()>) -> Result<(), String> {
        let prober = Prober::new(&probe).unwrap().unwrap();
        tokio::select! {
            answer = prober.ask(SOON) => answer.map_err(|error| error.to_string()),
            () = server => unreachable!("servers do not end"),
        }
    }

    async fn http_server(
        listener: TcpListener,
        tls: Option<tokio_rustls::TlsAcceptor>,
        status: u16,
        body: &'static str,
    ) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(async |_| {
                Ok::<_, Infallible>(
                    Response::builder().status(status).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap(),
                )
            });
            let server = conn::http1::Builder::new();
            // Clients that go away are their own business.
            let _ = match &tls {
                None => server.serve_connection(TokioIo::new(stream), answer).await,
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => server.serve_connection(TokioIo::new(stream), answer).await,
                    Err(_) => Ok(()),
                },
            };
        }
    }

    #[tokio::test]
    async fn http_says_yes_or_what_is_missing() {
        for (status, body, expected) in [
            (200, "ok", Ok(())),
            (
                500,
                "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n",
                Err("answers 500, not ready: etcd"),
            ),
            (401, "", Err("answers 401")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let probe = Probe::Http { address, path: "/readyz".into() };
            let answer = ask(probe, http_server(listener, None, status, body)).await;
            assert_eq!(answer, expected.map_err(|text| format!("GET http://{address}/readyz: {text}")));
        }
    }

    #[tokio::test]
    async fn nobody_there_is_a_no() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let prober = Prober::new(&Probe::Http { address, path: "/".into() }).unwrap().unwrap();
        assert!(prober.ask(SOON).await.unwrap_err().to_string().contains("refused"));
        let prober = Prober::new(&Probe::UnixSocket { path: "/nonexistent".into() }).unwrap().unwrap();
        assert!(prober.ask(SOON).await.unwrap_err().to_string().starts_with("gRPC on /nonexistent: No such file"));
    }

    #[tokio::test]
    async fn silence_is_a_no() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = Probe::Http { address: listener.local_addr().unwrap(), path: "/".into() };
        let error = Prober::new(&probe).unwrap().unwrap().ask(Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(error, ProbeError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn https_wants_the_right_authority_and_shows_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let write = |name: &str, pem: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let (ca, key) = (write("ca.crt", made.cert.pem()), write("ca.key", made.signing_key.serialize_pem()));
        let wrong_ca = write("wrong.crt", other.cert.pem());
        let identity = Some((ca.clone(), key.clone()));

        for (ca, identity, expected) in
            [(&ca, identity.clone(), true), (&ca, None, false), (&wrong_ca, identity, false)]
        {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut roots = RootCertStore::empty();
            roots.add(made.cert.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
                .build()
                .unwrap();
            let server = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier)
                .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::from_pem_file(&key).unwrap())
                .unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let probe = Probe::Https { address, path: "/readyz".into(), ca: ca.clone(), identity };
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            let answer = ask(probe, http_server(listener, Some(acceptor), 200, "ok")).await;
            assert_eq!(answer.is_ok(), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let address = "127.0.0.1:1".parse().unwrap();
        let probe = Probe::Https { address, path: "/".into(), ca: "/nonexistent/ca.crt".into(), identity: None };
        assert!(Prober::new(&probe).unwrap_err().to_string().starts_with("/nonexistent/ca.crt: "));
    }

    #[tokio::test]
    async fn a_unix_socket_answers_in_http2_with_or_without_health() {
        let cases: [(&'static [u8], bool); 3] =
            [(b"", true), (&[0, 0, 0, 0, 2, 8, 1], true), (&[0, 0, 0, 0, 2, 8, 2], false)];
        for (body, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("grpc.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let server = async {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = service_fn(async |request: Request<Incoming>| {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(body))))
                });
                let _ = conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
                std::future::pending::<()>().await;
            };
            assert_eq!(ask(Probe::UnixSocket { path }, server).await.is_ok(), expected);
        }
    }
}
