//! A connection with whoever serves a bucket, through a proxy where there is one.

use std::{error::Error as _, fmt, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header, uri::Scheme};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::{
    client::proxy::matcher::{Intercept, Matcher},
    rt::TokioIo,
};
use k3s_config::s3::{S3Proxy, S3Settings};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{S3Error, tls};

/// As Go's dialer has it, and so k3s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What bytes go through.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The way to one host.
pub(crate) struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    proxy: Option<Intercept>,
    /// For sentences.
    endpoint: String,
}

/// A connection, and how requests on it have to be written.
pub(crate) struct Connection {
    pub(crate) stream: Box<dyn Stream>,
    /// A proxy that wants to know the whole address, and what it is to be told of us.
    pub(crate) proxied: Option<Option<HeaderValue>>,
}

impl Connector {
    /// To `host`, which is the endpoint's, or the bucket's below it.
    pub(crate) fn new(settings: &S3Settings, host: String) -> Result<Self, S3Error> {
        let endpoint = settings.endpoint.to_string();
        let tls = tls::config(&settings.security)?;
        let port = settings.endpoint.port.unwrap_or(if tls.is_some() { 443 } else { 80 });
        let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let matcher = match &settings.proxy {
            S3Proxy::Environment => Some(Matcher::from_env()),
            S3Proxy::None => None,
            S3Proxy::Http(url) => Some(Matcher::builder().all(url.expose().to_owned()).build()),
        };
        let uri = Uri::builder().scheme(scheme).authority(authority(&host, port)).path_and_query("/").build();
        let proxy = matcher.zip(uri.ok()).and_then(|(matcher, uri)| matcher.intercept(&uri));
        let tls = match tls {
            Some(config) => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| S3Error::Unreachable { endpoint: endpoint.clone(), why: error.to_string() })?;
                Some((TlsConnector::from(Arc::new(config)), name))
            }
            None => None,
        };
        Ok(Self { host, port, tls, proxy, endpoint })
    }

    /// As requests name the host.
    pub(crate) fn host_header(&self) -> String {
        match (&self.tls, self.port) {
            (Some(_), 443) | (None, 80) if self.host.contains(':') => format!("[{}]", self.host),
            (Some(_), 443) | (None, 80) => self.host.clone(),
            _ => authority(&self.host, self.port),
        }
    }

    pub(crate) async fn open(&self) -> Result<Connection, S3Error> {
        let Some(proxy) = &self.proxy else {
            let stream = self.dial(&self.host, self.port).await?;
            return Ok(Connection { stream: self.secure(stream).await?, proxied: None });
        };
        let host = proxy.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        let stream = self.dial(host, proxy.uri().port_u16().unwrap_or(80)).await?;
        let credentials = proxy.basic_auth().cloned();
        if self.tls.is_none() {
            return Ok(Connection { stream: Box::new(stream), proxied: Some(credentials) });
        }
        let stream = self.tunnel(stream, credentials).await?;
        Ok(Connection { stream: self.secure(stream).await?, proxied: None })
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, S3Error> {
        let unreachable = |why| S3Error::Unreachable { endpoint: self.endpoint.clone(), why };
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
            Ok(connected) => connected.map_err(|error| unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    async fn secure(&self, stream: impl Stream + 'static) -> Result<Box<dyn Stream>, S3Error> {
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(stream)) };
        match connector.connect(name.clone(), stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                let cause = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
                let (endpoint, why) = (self.endpoint.clone(), error.to_string());
                Err(match cause {
                    Some(rustls::Error::InvalidCertificate(_)) => S3Error::Untrusted { endpoint, why },
                    _ => S3Error::Handshake { endpoint, why },
                })
            }
        }
    }

    /// Has the proxy connect us, so that it sees nothing of what is said.
    async fn tunnel(
        &self,
        stream: TcpStream,
        credentials: Option<HeaderValue>,
    ) -> Result<impl Stream + use<>, S3Error> {
        let authority = authority(&self.host, self.port);
        let mut request = Request::builder().method(Method::CONNECT).uri(&authority).header(header::HOST, &authority);
        if let Some(credentials) = credentials {
            request = request.header(header::PROXY_AUTHORIZATION, credentials);
        }
        let broken = |why: String| S3Error::Broken { endpoint: self.endpoint.clone(), why };
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(with_cause(&error)))?;
        let asked = async {
            let answer = sender.send_request(request).await.map_err(|error| broken(with_cause(&error)))?;
            if !answer.status().is_success() {
                return Err(S3Error::Proxy { endpoint: self.endpoint.clone(), status: answer.status().as_u16() });
            }
            hyper::upgrade::on(answer).await.map_err(|error| broken(with_cause(&error)))
        };
        let (mut connection, mut asked) = (pin!(connection.with_upgrades()), pin!(asked));
        let upgraded = tokio::select! {
            biased;
            upgraded = &mut asked => upgraded,
            // It ends where the tunnel begins, or with the error that `asked` has too.
            _ = &mut connection => asked.await,
        };
        Ok(TokioIo::new(upgraded?))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// An error with what it says of its causes.
pub(crate) fn with_cause(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
