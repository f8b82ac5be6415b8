//! Certificates, a stand-in for kube-apiserver, and clients, for the tests of the front.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k3s_datastore::{Datastore, Options};
use k3s_identity::{Password, TokenFiles};
use k3s_listener::Limits;
use k3s_pki::{ClientCa, CurrentCertificate, Lifetime, ServerPki, ServerRequest, TlsPolicy};
use k3s_tunnel::{Egress, Tunnels};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Body, BodyError, Front, Unauthenticated, Upstream,
    body::{self, empty, full},
    connector::Connector,
    serve,
    tasks::Tasks,
};
use crate::{
    NodeDialer,
    admin_client::{AdminClient, AdminClientSender},
    node_passwords::{NodePasswords, OwnNode},
    routes::{Cluster, Reserved, Routes},
    token::ServerToken,
};

/// A certificate authority.
pub(crate) struct Ca {
    pub(crate) pem: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// Puts it where a server finds its authorities, in `tls` below `server_dir`.
    fn store(&self, server_dir: &Path, stem: &str) {
        std::fs::create_dir_all(server_dir.join("tls")).unwrap();
        std::fs::write(server_dir.join(format!("tls/{stem}.crt")), &self.pem).unwrap();
        std::fs::write(server_dir.join(format!("tls/{stem}.key")), &self.key).unwrap();
    }

    /// An authority below this one, with the chain that leads here.
    pub(crate) fn authority(&self, name: &str) -> Leaf {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        let Leaf { certificate, key } = self.sign(&params);
        Leaf { certificate: certificate + &self.pem, key }
    }

    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Leaf {
        let mut params = params(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// For 127.0.0.1.
    pub(crate) fn server(&self) -> Leaf {
        let mut params = params("server", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        self.sign(&params)
    }

    pub(crate) fn client_ca(&self) -> ClientCa {
        ClientCa::new(self.pem.as_bytes()).unwrap()
    }

    fn roots(&self) -> RootCertStore {
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
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    pub(crate) fn current(&self) -> Arc<CurrentCertificate> {
        Arc::new(CurrentCertificate::from_pem(self.certificate.as_bytes(), self.key.as_bytes()).unwrap())
    }

    pub(crate) fn certified_key(&self) -> CertifiedKey {
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
pub(crate) struct Seen {
    /// Counts connections from 0.
    pub(crate) connection: usize,
    /// Whether the connection showed a client certificate that it trusts for `X-Remote-*`.
    pub(crate) trusted: bool,
    pub(crate) version: Version,
    pub(crate) uri: http::Uri,
    pub(crate) headers: HeaderMap,
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
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
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
    pub(crate) async fn start(server_ca: &Ca, request_header_ca: &Ca) -> Self {
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
    pub(crate) fn send_goaway(&mut self) {
        let running = self.running.as_mut().unwrap();
        std::mem::take(&mut running.goaway).cancel();
    }

    /// Breaks every connection off and is not there any more.
    pub(crate) async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.accepting.abort();
        running.accepting.await.unwrap_err();
        running.tasks.end(Duration::ZERO).await;
    }

    /// Is there again, at the same address.
    pub(crate) async fn restart(&mut self) {
        self.run(TcpListener::bind(self.address).await.unwrap());
    }

    /// The last request it saw.
    pub(crate) fn last(&self) -> Seen {
        self.shared.seen.lock().unwrap().pop().expect("a request arrived")
    }

    /// How many requests it saw on each connection.
    pub(crate) fn requests_by_connection(&self) -> Vec<usize> {
        let mut counts = vec![0; self.shared.connections.load(Ordering::SeqCst)];
        for seen in self.shared.seen.lock().unwrap().iter() {
            counts[seen.connection] += 1;
        }
        counts
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until it has so many connections.
    pub(crate) async fn connected(&self, connections: usize) {
        soon(self.shared.connected.subscribe().wait_for(|now| *now == connections)).await.unwrap();
    }

    /// Waits until it is sending so many answers.
    pub(crate) async fn sending(&self, streams: usize) {
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
        stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
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
pub(crate) fn acceptor(server_ca: &Ca, request_header_ca: &Ca) -> TlsAcceptor {
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

/// The server token's password.
pub(crate) const TOKEN: &str = "server-s3cret";
/// The agent token's password.
pub(crate) const AGENT_TOKEN: &str = "agent-s3cret";
/// The password of the server's own node, `server`.
pub(crate) const NODE_PASSWORD: &str = "node-s3cret";

fn server_request() -> ServerRequest {
    ServerRequest {
        tls_sans: Vec::new(),
        node_name: "server".parse().unwrap(),
        node_ips: vec![[192, 0, 2, 1].into()],
        advertise_address: None,
        service_ip: [10, 43, 0, 1].into(),
        cluster_domain: "cluster.local".parse().unwrap(),
        apiserver_port: 6444,
        lifetime: Lifetime::default(),
        now: SystemTime::now(),
    }
}

/// The front, before a stand-in for kube-apiserver.
pub(crate) struct Setup {
    pub(crate) client_ca: Ca,
    /// A client's certificate.
    pub(crate) jane: Leaf,
    pub(crate) api: ApiServer,
    pub(crate) address: SocketAddr,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) egress: watch::Sender<Egress>,
    pub(crate) certificate: Arc<CurrentCertificate>,
    pub(crate) server_ca: Ca,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<()>,
    /// `<data>/server`
    pub(crate) server_dir: tempfile::TempDir,
    _core: AdminClientSender,
    pub(crate) datastore: Datastore,
    _end: DropGuard,
}

impl Setup {
    pub(crate) async fn start() -> Self {
        Self::start_with(None, Unauthenticated::Refused).await
    }

    /// With so many connections.
    pub(crate) async fn start_with_limits(limits: Limits) -> Self {
        Self::start_as(None, Unauthenticated::Refused, limits).await
    }

    /// With metrics of ours, or with anonymous access.
    pub(crate) async fn start_with(metrics: Option<Registry>, unauthenticated: Unauthenticated) -> Self {
        Self::start_as(metrics, unauthenticated, Limits::of_process()).await
    }

    async fn start_as(metrics: Option<Registry>, unauthenticated: Unauthenticated, limits: Limits) -> Self {
        let (client_ca, server_ca, request_header_ca) = (Ca::new("client-ca"), Ca::new("server-ca"), Ca::new("rh-ca"));
        let api = ApiServer::start(&server_ca, &request_header_ca).await;
        let proxy_certificate = request_header_ca.client("system:auth-proxy", None).current();
        let certificate = server_ca.server().current();
        let server_dir = tempfile::tempdir().unwrap();
        client_ca.store(server_dir.path(), "client-ca");
        server_ca.store(server_dir.path(), "server-ca");
        let pki = Arc::new(ServerPki::ensure(server_dir.path(), &server_request()).unwrap());
        TokenFiles::ensure(server_dir.path(), Some(TOKEN), Some(AGENT_TOKEN), pki.server_ca.bundle()).unwrap();
        let datastore = Datastore::open(Options::new(server_dir.path().join("state.db"))).await.unwrap();
        let (admin_client_sender, admin_client) = AdminClient::pending();
        let own_node = OwnNode { name: "server".into(), password: Password::new(NODE_PASSWORD), lost: None };
        let (ready, is_ready) = watch::channel(true);
        let routes = Routes::new(Cluster {
            server_dir: server_dir.path().to_owned(),
            pki: pki.clone(),
            node_passwords: Arc::new(NodePasswords::new(admin_client.clone(), Some(own_node))),
            admin_client,
            reserved: Reserved {
                own_node: Some("server".into()),
                server: ["192.0.2.1", "api.example.com", "*.api.example.com"].map(|san| san.parse().unwrap()).into(),
                services: vec!["10.43.0.0/16".parse().unwrap()],
                cluster_domain: "cluster.local".into(),
            },
            token: Arc::new(ServerToken::new(
                server_dir.path().to_owned(),
                pki.server_ca.bundle().to_vec(),
                true,
                datastore.client(),
                Password::new(TOKEN),
            )),
            config: json!({"ClusterDomain": "cluster.local"}),
        });
        let (egress, known) = watch::channel(Egress::new(None, "127.0.0.1".parse().unwrap()));
        let front = Front {
            certificate: certificate.clone(),
            tls: TlsPolicy::default(),
            client_ca: Arc::new(client_ca.client_ca()),
            limits,
            upstream: Upstream::new(api.address, server_ca.pem.as_bytes(), proxy_certificate).unwrap(),
            unauthenticated,
            ready: is_ready,
            routes,
            nodes: NodeDialer { tunnels: Tunnels::default(), egress: known },
            metrics,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, front, shutdown.clone()));
        let _end = shutdown.clone().drop_guard();
        Self {
            jane: client_ca.client("jane", Some("dev")),
            client_ca,
            api,
            address,
            ready,
            egress,
            certificate,
            server_ca,
            shutdown,
            serving,
            server_dir,
            _core: admin_client_sender,
            datastore,
            _end,
        }
    }

    /// A client that connects to the front, with a certificate or without.
    pub(super) fn connector(&self, certificate: Option<&Leaf>) -> Connector {
        connector(self.address, &self.server_ca, certificate.map(Leaf::certified_key))
    }

    /// An HTTP/2 connection to the front.
    pub(crate) async fn http2(&self, certificate: Option<&Leaf>) -> Http2 {
        let stream = soon(self.connector(certificate).http2()).await.unwrap();
        let (sender, connection) =
            http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let running = tokio::spawn(connection);
        Http2 { sender, running }
    }

    /// An HTTP/1.1 connection to the front.
    pub(crate) async fn http1(&self, certificate: Option<&Leaf>) -> http1::SendRequest<Body> {
        let stream = soon(self.connector(certificate).http1()).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
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
pub(crate) struct Http2 {
    sender: http2::SendRequest<Body>,
    pub(crate) running: JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        soon(self.sender.clone().send_request(request)).await.unwrap()
    }

    /// Sends what has been given of the request; the answer comes when it comes.
    pub(crate) fn begin(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        self.sender.clone().send_request(request)
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Incoming> {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&'static str, &'static str)]) -> Response<Incoming> {
        let mut request = Request::get(format!("https://front.test:6443{path}")).body(empty()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        self.send(request).await
    }
}

/// Answers what it hears in capitals, once that has ended.
pub(crate) async fn answer_the_end(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.unwrap();
    io.write_all(&heard.to_ascii_uppercase()).await.unwrap();
    io.shutdown().await.unwrap();
}

/// Says much, ends, and reads slowly what is said to that by [`answer_the_end`].
pub(crate) async fn is_answered_after_the_end(mut io: impl AsyncRead + AsyncWrite + Unpin) {
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
pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `future` comes to; a test that would hang fails.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("the test hangs")
}

/// A body of what is sent to it.
pub(crate) fn channel() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
    (sender, http_body_util::StreamBody::new(frames).boxed_unsync())
}
