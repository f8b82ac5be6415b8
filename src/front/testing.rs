//! Certificates, a stand-in for kube-apiserver, and clients, for tests of the front and of what it serves.
#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k3s_http::{Body, BodyError, empty, full};
use k3s_listener::Limits;
use k3s_pki::{ClientCa, CurrentCertificate, TlsPolicy};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, client::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Connection, Front, KubeApiserver, Service, Unauthenticated, Upstream, body,
    connector::Connector,
    listener::{Accepting, serve},
    tasks::Tasks,
};

/// A certificate authority.
pub struct Ca {
    /// Its certificate.
    pub pem: String,
    /// Its key, PEM.
    pub key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub struct Leaf {
    /// With the chain, where there is one.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Ca {
    /// A root of that name.
    pub fn new(name: &str) -> Self {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// An authority below this one, with the chain that leads here.
    pub fn authority(&self, name: &str) -> Leaf {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        let Leaf { certificate, key } = self.sign(&params);
        Leaf { certificate: certificate + &self.pem, key }
    }

    /// For a user of these names.
    pub fn client(&self, user: &str, group: Option<&str>) -> Leaf {
        let mut params = params(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// For 127.0.0.1.
    pub fn server(&self) -> Leaf {
        let mut params = params("server", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        self.sign(&params)
    }

    /// What verifies its clients.
    pub fn client_ca(&self) -> ClientCa {
        ClientCa::new(self.pem.as_bytes()).unwrap()
    }

    /// What trusts its servers.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }

    fn sign(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Leaf {
    /// The certificate as it is shown in a handshake.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    /// As a listener shows it.
    pub fn current(&self) -> Arc<CurrentCertificate> {
        Arc::new(CurrentCertificate::from_pem(self.certificate.as_bytes(), self.key.as_bytes()).unwrap())
    }

    /// As a client shows it.
    pub fn certified_key(&self) -> CertifiedKey {
        let key = k3s_pki::PrivateKey::from_pem(self.key.as_bytes()).unwrap();
        CertifiedKey::new(vec![self.der()], key.signer())
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// A year's validity around now.
fn params(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    let now = OffsetDateTime::from(SystemTime::now());
    params.not_before = now - time::Duration::days(182);
    params.not_after = now + time::Duration::days(182);
    params
}

/// What the stand-in for kube-apiserver saw of a request.
#[derive(Debug)]
pub struct Seen {
    /// Counts connections from 0.
    pub connection: usize,
    /// Whether the connection showed a client certificate that it trusts for `X-Remote-*`.
    pub trusted: bool,
    /// As it came.
    pub version: Version,
    /// As it came.
    pub uri: http::Uri,
    /// As they came.
    pub headers: HeaderMap,
}

/// A stand-in for kube-apiserver: TLS, HTTP/2 with 100 streams a connection, HTTP/1.1 with upgrades.
///
/// | path | answer |
/// |---|---|
/// | `/hang` | none |
/// | `/guess` | 401 |
/// | `/watch` | `event`, then nothing for ever |
/// | `/flood` | bytes without end |
/// | `/metrics` | `theirs 1`, for a request with a token; else 403 |
/// | `/echo` | the request's body and trailers |
/// | `/upgrade` | 101, then what it hears once the client has ended, in capitals; without `Upgrade`, 400 |
/// | else | `ok` |
pub struct ApiServer {
    /// Where it listens.
    pub address: SocketAddr,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    running: Option<Running>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// Connections that stand.
    connected: watch::Sender<usize>,
    /// Answers that are being sent.
    streams: watch::Sender<usize>,
}

struct Running {
    accepting: JoinHandle<()>,
    tasks: Tasks,
    goaway: CancellationToken,
}

impl ApiServer {
    /// Certified by `server_ca`, and trusting what `request_header_ca` certifies.
    pub async fn start(server_ca: &Ca, request_header_ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut server = Self {
            address: listener.local_addr().unwrap(),
            acceptor: acceptor(server_ca, request_header_ca),
            shared: Arc::default(),
            running: None,
        };
        server.run(listener);
        server
    }

    /// Sends GOAWAY on every connection: what runs goes on, nothing new is taken there.
    pub fn send_goaway(&mut self) {
        let running = self.running.as_mut().unwrap();
        std::mem::take(&mut running.goaway).cancel();
    }

    /// Breaks every connection off and is not there any more.
    pub async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.accepting.abort();
        running.accepting.await.unwrap_err();
        running.tasks.end(Duration::ZERO).await;
    }

    /// Is there again, at the same address.
    pub async fn restart(&mut self) {
        self.run(TcpListener::bind(self.address).await.unwrap());
    }

    /// The last request it saw.
    pub fn last(&self) -> Seen {
        self.shared.seen.lock().unwrap().pop().expect("a request arrived")
    }

    /// How many requests it saw on each connection.
    pub fn requests_by_connection(&self) -> Vec<usize> {
        let mut counts = vec![0; self.shared.connections.load(Ordering::SeqCst)];
        for seen in self.shared.seen.lock().unwrap().iter() {
            counts[seen.connection] += 1;
        }
        counts
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until it has so many connections.
    pub async fn connected(&self, connections: usize) {
        soon(self.shared.connected.subscribe().wait_for(|now| *now == connections)).await.unwrap();
    }

    /// Waits until it is sending so many answers.
    pub async fn sending(&self, streams: usize) {
        soon(self.shared.streams.subscribe().wait_for(|now| *now == streams)).await.unwrap();
    }

    fn run(&mut self, listener: TcpListener) {
        let (tasks, goaway) = (Tasks::default(), CancellationToken::new());
        let (acceptor, shared, spawner, token) =
            (self.acceptor.clone(), self.shared.clone(), tasks.clone(), Mutex::new(goaway.clone()));
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let goaway = token.lock().unwrap().clone();
                let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
                spawner.spawn(Self::connection(stream, connection, shared.clone(), spawner.clone(), goaway));
            }
        });
        self.running = Some(Running { accepting, tasks, goaway });
    }

    async fn connection(
        stream: tokio_rustls::server::TlsStream<TcpStream>,
        connection: usize,
        shared: Arc<Shared>,
        tasks: Tasks,
        goaway: CancellationToken,
    ) {
        let session = stream.get_ref().1;
        let trusted = session.peer_certificates().is_some();
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let upgrades = tasks.clone();
        let _connected = Counted::new(shared.clone(), |shared| &shared.connected);
        let service = service_fn(move |request: Request<Incoming>| {
            let (shared, tasks) = (shared.clone(), upgrades.clone());
            async move {
                shared.seen.lock().unwrap().push(Seen {
                    connection,
                    trusted,
                    version: request.version(),
                    uri: request.uri().clone(),
                    headers: request.headers().clone(),
                });
                let sending = Counted::new(shared, |shared| &shared.streams);
                let response = answer(request, &tasks).await;
                Ok::<_, Infallible>(response.map(|answer| body::keep(answer, sending)))
            }
        });
        let io = TokioIo::new(stream);
        if is_http2 {
            let mut connection = std::pin::pin!(
                hyper::server::conn::http2::Builder::new(tasks)
                    .max_concurrent_streams(100)
                    .serve_connection(io, service)
            );
            let ended = goaway.run_until_cancelled(connection.as_mut()).await;
            if ended.is_none() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        } else {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
        }
    }
}

/// kube-apiserver's side of handshakes.
pub(super) fn acceptor(server_ca: &Ca, request_header_ca: &Ca) -> TlsAcceptor {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(request_header_ca.roots()), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let leaf = server_ca.server();
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.der()], leaf.private_key())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}

/// Something that is counted while it lasts.
struct Counted {
    shared: Arc<Shared>,
    count: fn(&Shared) -> &watch::Sender<usize>,
}

impl Counted {
    fn new(shared: Arc<Shared>, count: fn(&Shared) -> &watch::Sender<usize>) -> Self {
        count(&shared).send_modify(|count| *count += 1);
        Self { shared, count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.shared).send_modify(|count| *count -= 1);
    }
}

async fn answer(mut request: Request<Incoming>, tasks: &Tasks) -> Response<Body> {
    match request.uri().path() {
        "/hang" => std::future::pending().await,
        "/guess" => Response::builder().status(401).body(empty()).unwrap(),
        "/watch" => Response::new(Endless { first: Some("event"), then: None }.boxed_unsync()),
        "/flood" => {
            Response::new(Endless { first: None, then: Some(Bytes::from_static(&[b'x'; 16 << 10])) }.boxed_unsync())
        }
        "/metrics" if request.headers().get("authorization").is_none() => {
            Response::builder().status(403).header("content-type", "text/plain").body(full("no")).unwrap()
        }
        "/metrics" => {
            Response::builder().header("content-type", &request.headers()["accept"]).body(full("theirs 1\n")).unwrap()
        }
        "/echo" => Response::new(body::streamed(request.into_body())),
        "/upgrade" if request.headers().contains_key("upgrade") => {
            let protocol = request.headers()["upgrade"].clone();
            let upgraded = hyper::upgrade::on(&mut request);
            tasks.spawn(async move {
                answer_the_end(TokioIo::new(upgraded.await.unwrap())).await;
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "Upgrade")
                .header("upgrade", protocol)
                .body(empty())
                .unwrap()
        }
        "/upgrade" => Response::builder().status(400).body(full("no upgrade")).unwrap(),
        _ => Response::new(full("ok")),
    }
}

struct Endless {
    first: Option<&'static str>,
    then: Option<Bytes>,
}

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take().map(Bytes::from).or_else(|| self.then.clone()) {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Poll::Pending,
        }
    }
}

/// The front, before a stand-in for kube-apiserver.
pub struct Setup {
    /// Certifies clients.
    pub client_ca: Ca,
    /// A client's certificate.
    pub jane: Leaf,
    /// Where requests go that are not answered here.
    pub api: ApiServer,
    /// Where the front listens.
    pub address: SocketAddr,
    /// How kube-apiserver does.
    pub kube_apiserver: watch::Sender<KubeApiserver>,
    /// What clients see.
    pub certificate: Arc<CurrentCertificate>,
    /// Certifies the front and kube-apiserver.
    pub server_ca: Ca,
    /// Ends the front.
    pub shutdown: CancellationToken,
    /// Ends when the front has.
    pub serving: JoinHandle<()>,
    _end: DropGuard,
}

/// How a [`Setup`] differs from a server's front without any flag.
pub struct Settings {
    /// What is shown beside kube-apiserver's metrics.
    pub metrics: Option<Registry>,
    /// Who answers requests without credentials.
    pub unauthenticated: Unauthenticated,
    /// How many connections there may be.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self { metrics: None, unauthenticated: Unauthenticated::Refused, limits: Limits::of_process() }
    }
}

/// A service that knows `/ping` and `/cacerts`.
#[derive(Debug)]
struct Pong;

impl Service for Pong {
    fn answer<'a>(
        &'a self,
        request: &'a mut Request<Incoming>,
        _: Connection<'a>,
    ) -> Option<BoxFuture<'a, Response<Body>>> {
        let is_ours = ["/ping", "/cacerts"].contains(&request.uri().path());
        is_ours.then(|| std::future::ready(Response::new(full("pong"))).boxed())
    }
}

impl Setup {
    /// With the settings of a server without flags.
    pub async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    /// With other settings.
    pub async fn start_with(settings: Settings) -> Self {
        Self::serve(Ca::new("client-ca"), Ca::new("server-ca"), Arc::new(Pong), settings).await
    }

    /// With a service, which has these authorities too.
    pub async fn serve(client_ca: Ca, server_ca: Ca, service: Arc<dyn Service>, settings: Settings) -> Self {
        let request_header_ca = Ca::new("rh-ca");
        let api = ApiServer::start(&server_ca, &request_header_ca).await;
        let proxy_certificate = request_header_ca.client("system:auth-proxy", None).current();
        let certificate = server_ca.server().current();
        let (kube_apiserver, told) = watch::channel(KubeApiserver::Ready);
        let Settings { metrics, unauthenticated, limits } = settings;
        let front = Front {
            certificate: certificate.clone(),
            tls: TlsPolicy::default(),
            client_ca: Arc::new(client_ca.client_ca()),
            limits,
            upstream: Upstream::new(api.address, server_ca.pem.as_bytes(), proxy_certificate).unwrap(),
            unauthenticated,
            kube_apiserver: told,
            service,
            metrics,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, front, Accepting::Here, shutdown.clone()));
        let _end = shutdown.clone().drop_guard();
        let jane = client_ca.client("jane", Some("dev"));
        Self { jane, client_ca, api, address, kube_apiserver, certificate, server_ca, shutdown, serving, _end }
    }

    /// A connection to the front on which nothing was said yet, with a certificate or without.
    pub async fn stream(&self, certificate: Option<&Leaf>) -> TlsStream<TcpStream> {
        soon(self.connector(certificate).http1()).await.unwrap()
    }

    /// A client that connects to the front, with a certificate or without.
    pub(super) fn connector(&self, certificate: Option<&Leaf>) -> Connector {
        connector(self.address, &self.server_ca, certificate.map(Leaf::certified_key))
    }

    /// An HTTP/2 connection to the front.
    pub async fn http2(&self, certificate: Option<&Leaf>) -> Http2 {
        let stream = soon(self.connector(certificate).http2()).await.unwrap();
        let (sender, connection) =
            http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let running = tokio::spawn(connection);
        Http2 { sender, running }
    }

    /// An HTTP/1.1 connection to the front.
    pub async fn http1(&self, certificate: Option<&Leaf>) -> http1::SendRequest<Body> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.stream(certificate).await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }
}

/// Connects to `address`, with a certificate and whatever key comes with it.
pub(super) fn connector(address: SocketAddr, server_ca: &Ca, certificate: Option<CertifiedKey>) -> Connector {
    let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(server_ca.roots());
    let tls = match certificate {
        Some(certificate) => tls.with_client_cert_resolver(Arc::new(CurrentCertificate::new(certificate))),
        None => tls.with_no_client_auth(),
    };
    Connector::new(address, tls)
}

/// An HTTP/2 client's connection.
pub struct Http2 {
    sender: http2::SendRequest<Body>,
    /// Ends with the connection.
    pub running: JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    /// The answer's head.
    pub async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        soon(self.sender.clone().send_request(request)).await.unwrap()
    }

    /// Sends what has been given of the request; the answer comes when it comes.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn begin(&self, request: Request<Body>) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        self.sender.clone().send_request(request)
    }

    /// The answer's head.
    pub async fn get(&self, path: &str) -> Response<Incoming> {
        self.get_with(path, &[]).await
    }

    /// The answer's head, to a request with these headers.
    pub async fn get_with(&self, path: &str, headers: &[(&'static str, &'static str)]) -> Response<Incoming> {
        let mut request = Request::get(format!("https://front.test:6443{path}")).body(empty()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        self.send(request).await
    }
}

/// Answers what it hears in capitals, once that has ended.
pub async fn answer_the_end(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.unwrap();
    io.write_all(&heard.to_ascii_uppercase()).await.unwrap();
    io.shutdown().await.unwrap();
}

/// Says much, ends, and reads slowly what is said to that by [`answer_the_end`].
pub async fn is_answered_after_the_end(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let said: Vec<u8> = (0..6_000_000_u32).map(|position| b'a' + (position % 23) as u8).collect();
    soon(io.write_all(&said)).await.unwrap();
    io.shutdown().await.unwrap();
    let (mut heard, mut chunk) = (Vec::new(), vec![0; 100_000]);
    while let count @ 1.. = soon(io.read(&mut chunk)).await.unwrap() {
        heard.extend_from_slice(&chunk[..count]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(heard.len(), said.len());
    assert!(heard == said.to_ascii_uppercase());
}

/// The whole body, as text.
pub async fn text(response: Response<Incoming>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `future` comes to; a test that would hang fails.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("the test hangs")
}

/// A body of what is sent to it.
pub fn channel() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
    (sender, http_body_util::StreamBody::new(frames).boxed_unsync())
}
