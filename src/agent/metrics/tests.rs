//! The page as a Prometheus sees it, with real certificates and an API that answers reviews.

use std::net::Ipv4Addr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k3s_pki::CertificateFiles;
use rustls::{ClientConfig, pki_types::ServerName, version::TLS12};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    task::{JoinHandle, yield_now},
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    cluster_config::{ClusterConfig, tests::CONFIG},
    testing::{METRICS_READER, TestServer, supervisor},
    trust::{Identity, Trust},
};

const REVIEWS: [&str; 2] =
    ["POST /apis/authentication.k8s.io/v1/tokenreviews", "POST /apis/authorization.k8s.io/v1/subjectaccessreviews"];

/// A node that has joined.
struct TestNode {
    server: TestServer,
    metrics: Arc<Metrics>,
    known: watch::Sender<Option<EffectiveState>>,
    renewed: watch::Sender<()>,
    end: CancellationToken,
}

/// An answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl TestNode {
    async fn join() -> Self {
        Self::join_with_page_at(Ipv4Addr::LOCALHOST).await
    }

    async fn join_with_page_at(address: Ipv4Addr) -> Self {
        let server = TestServer::start().await;
        let registration = server.direct_applicant();
        registration.join().await.unwrap();
        server.seen();
        let mut registry = Registry::default();
        registration.balancer.register_metrics(&mut registry);
        let metrics = Metrics {
            registry: Arc::new(registry),
            address: address.into(),
            dir: registration.dir,
            supervisor: supervisor(),
        };
        let (known, renewed) = (watch::Sender::new(None), watch::Sender::new(()));
        Self { server, metrics: Arc::new(metrics), known, renewed, end: CancellationToken::new() }
    }

    /// Serves the page until the end.
    async fn serve(&self, min_tls_version: &str) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((self.metrics.address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let wanted = MetricsConfig { min_tls_version: min_tls_version.into(), ..wanted(address.port()) };
        self.know(Some(wanted.clone()));
        let (metrics, renewed, end) = (self.metrics.clone(), self.renewed.subscribe(), self.end.clone());
        (address, tokio::spawn(async move { metrics.serve(listener, &wanted, renewed, &end).await }))
    }

    fn know(&self, metrics: Option<MetricsConfig>) {
        let config = ClusterConfig { metrics, ..ClusterConfig::parse(CONFIG.as_bytes()).unwrap() };
        let known = EffectiveState { config, authority: Bytes::new(), ips: Vec::new() };
        self.known.send_replace(Some(known));
    }

    fn tls(&self, client: Option<&CertificateFiles>) -> ClientConfig {
        let authorities = std::fs::read(AgentPki::at(&self.metrics.dir).server_ca).unwrap();
        let identity = client.map(|files| Identity::load(files).unwrap());
        Trust::Authorities(authorities.into()).tls(identity).unwrap()
    }

    async fn get(&self, at: SocketAddr, client: Option<&CertificateFiles>, token: Option<&str>) -> Answer {
        let mut request = Request::get("/metrics").body(Empty::<Bytes>::new()).unwrap();
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        self.send(at, client, request).await
    }

    async fn send(&self, at: SocketAddr, client: Option<&CertificateFiles>, request: Request<Empty<Bytes>>) -> Answer {
        self.try_send(at, client, request).await.expect("an answer")
    }

    /// `None` if the connection breaks.
    async fn try_send(
        &self,
        at: SocketAddr,
        client: Option<&CertificateFiles>,
        request: Request<Empty<Bytes>>,
    ) -> Option<Answer> {
        let stream = TcpStream::connect(at).await.unwrap();
        let name = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let stream = TlsConnector::from(Arc::new(self.tls(client))).connect(name, stream).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let answered = async {
            let (parts, body) = sender.send_request(request).await.ok()?.into_parts();
            let text = String::from_utf8(body.collect().await.ok()?.to_bytes().into()).unwrap();
            Some(Answer { status: parts.status, headers: parts.headers, text })
        };
        tokio::select! {
            biased;
            answer = answered => answer,
            _ = connection => None,
        }
    }

    /// What the API was asked since the last look.
    fn asked(&self) -> Vec<String> {
        self.server.seen().into_iter().map(|seen| seen.line).collect()
    }
}

impl Answer {
    /// The `Status` of a refusal.
    fn refusal(&self) -> (u16, String, String) {
        let status: Value = serde_json::from_str(&self.text).unwrap();
        assert_eq!((&status["kind"], &status["apiVersion"]), (&"Status".into(), &"v1".into()));
        assert_eq!(status["code"], self.status.as_u16());
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
        let text = |field: &str| status[field].as_str().unwrap().to_owned();
        (self.status.as_u16(), text("reason"), text("message"))
    }
}

fn wanted(port: u16) -> MetricsConfig {
    MetricsConfig { port, min_tls_version: String::new(), cipher_suites: Vec::new() }
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, String, String) {
    (code, reason.into(), message.into())
}

#[tokio::test]
async fn whoever_the_api_lets_see_metrics_sees_the_balancers() {
    let node = TestNode::join().await;
    let (at, served) = node.serve("").await;
    let page = node.get(at, None, Some(METRICS_READER)).await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text);
    assert!(page.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
    let health = format!("k3s_loadbalancer_server_health{{name=\"test\",server=\"{}\"}}", node.server.address);
    assert!(page.text.contains(&health) && page.text.ends_with("# EOF\n"), "{}", page.text);
    assert_eq!(node.asked(), REVIEWS);
    assert_eq!(node.get(at, None, Some(METRICS_READER)).await.status, StatusCode::OK);
    assert!(node.asked().is_empty(), "an answer holds for a moment");

    let administrator = node.server.administrator();
    assert_eq!(node.get(at, Some(administrator), Some("wrong")).await.status, StatusCode::OK);
    assert!(node.asked().is_empty(), "who may do everything is not asked about");
    node.end.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn others_are_told_why_they_do_not() {
    let (node, foreign) = (TestNode::join().await, TestServer::start().await);
    let (at, served) = node.serve("").await;
    let unauthorized = refusal(401, "Unauthorized", "Unauthorized");
    assert_eq!(node.get(at, None, None).await.refusal(), unauthorized);
    assert_eq!(node.get(at, Some(foreign.administrator()), None).await.refusal(), unauthorized);
    assert!(node.asked().is_empty(), "without a credential there is nothing to ask about");
    for _ in 0..2 {
        assert_eq!(node.get(at, None, Some("wrong")).await.refusal(), unauthorized);
    }
    assert_eq!(node.asked(), REVIEWS[..1], "a refusal holds for a moment too");
    let page = node.get(at, Some(foreign.administrator()), Some(METRICS_READER)).await;
    assert_eq!(page.status, StatusCode::OK, "a certificate that means nothing leaves the word to the token");

    let pki = AgentPki::at(&node.metrics.dir);
    let message = "forbidden: User \"system:node:edge-1\" cannot get path \"/metrics\": RBAC: by a test";
    assert_eq!(node.get(at, Some(&pki.client_kubelet), None).await.refusal(), refusal(403, "Forbidden", message));
    node.server.answer("/apis/authorization.k8s.io/v1/subjectaccessreviews", StatusCode::SERVICE_UNAVAILABLE);
    let message = "the Kubernetes API, which decides who may see this page, could not be asked";
    let unavailable = refusal(503, "ServiceUnavailable", message);
    assert_eq!(node.get(at, Some(&pki.client_kube_proxy), None).await.refusal(), unavailable);
    node.server.answer("/apis/authorization.k8s.io/v1/subjectaccessreviews", StatusCode::OK);
    assert_eq!(node.get(at, Some(&pki.client_kube_proxy), None).await.status, StatusCode::FORBIDDEN);
    node.end.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn there_is_nothing_but_the_page_and_only_for_requests_of_reason() {
    let node = TestNode::join().await;
    let (at, served) = node.serve("VersionTLS13").await;
    let administrator = Some(node.server.administrator());
    let request = |method, path| Request::builder().method(method).uri(path).body(Empty::new()).unwrap();
    let answer = node.send(at, administrator, request(Method::GET, "/metrics/cadvisor")).await;
    assert_eq!(answer.refusal(), refusal(404, "NotFound", "there is nothing here but /metrics"));
    let answer = node.send(at, administrator, request(Method::POST, "/metrics")).await;
    assert_eq!(answer.refusal(), refusal(405, "MethodNotAllowed", "metrics can only be read: use GET"));
    let mut request = request(Method::GET, "/metrics");
    request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::try_from("x".repeat(32 << 10)).unwrap());
    // The answer is lost where the rest of the request comes in after it.
    let answer = node.try_send(at, administrator, request).await;
    assert!(answer.is_none_or(|answer| answer.status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));

    let older = ClientConfig::builder_with_provider(node.tls(None).crypto_provider().clone())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let stream = TcpStream::connect(at).await.unwrap();
    let name = ServerName::IpAddress(at.ip().into());
    let refused = TlsConnector::from(Arc::new(older)).connect(name, stream).await.err().unwrap();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    node.end.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn strangers_that_say_nothing_keep_nobody_out() {
    let node = TestNode::join().await;
    let (at, served) = node.serve("").await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    let answer = node.get(at, Some(node.server.administrator()), None).await;
    assert_eq!(answer.status, StatusCode::OK);
    let displaced = silent[0].read(&mut [0]).await;
    assert!(displaced.map_or(true, |read| read == 0), "the oldest left for the youngest");
    node.end.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_client() {
    let node = TestNode::join().await;
    let (at, served) = node.serve("").await;
    let shown = async || {
        let stream = TcpStream::connect(at).await.unwrap();
        let name = ServerName::IpAddress(at.ip().into());
        let stream = TlsConnector::from(Arc::new(node.tls(None))).connect(name, stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = shown().await;
    node.server.direct_applicant().join().await.unwrap();
    assert_eq!(shown().await, before);
    node.renewed.send_replace(());
    while shown().await == before {}
    node.end.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_waited_for_and_given_back_when_nobody_wants_the_page() {
    // An address of its own: nobody else may take the port while it is free.
    let node = TestNode::join_with_page_at(Ipv4Addr::new(127, 83, 0, 1)).await;
    let other = std::net::TcpListener::bind((node.metrics.address, 0)).unwrap();
    let at = other.local_addr().unwrap();
    let (metrics, known, renewed) = (node.metrics.clone(), node.known.subscribe(), node.renewed.subscribe());
    let end = node.end.clone();
    let running = tokio::spawn(async move { metrics.run(known, renewed, end).await });
    let warnings = async || node.metrics.supervisor.status().await.warnings;

    node.know(Some(wanted(at.port())));
    while warnings().await.is_empty() {
        yield_now().await;
    }
    let told = format!("{:?}", warnings().await);
    assert!(told.contains(&format!("{at} cannot be listened on")) && told.contains("stop the program"), "{told}");
    drop(other);
    while TcpStream::connect(at).await.is_err() {
        yield_now().await;
    }
    assert_eq!(node.get(at, Some(node.server.administrator()), None).await.status, StatusCode::OK);
    assert!(warnings().await.is_empty());

    node.know(None);
    while TcpStream::connect(at).await.is_ok() {
        yield_now().await;
    }
    node.end.cancel();
    running.await.unwrap();
}
