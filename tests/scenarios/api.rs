//! A client of the API that can do what well-behaved ones do not: keep hundreds of watches, stop reading, hold a certificate without its key.

use std::{fs, net::Ipv4Addr, sync::Arc};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use cluster_tests::{Node, Wire};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::{self, sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Where the front listens.
const PORT: u16 = 6443;

/// Stream window: small, as of a client that wants to be slowed down rather than buffered for.
const WINDOW: u32 = 64 << 10;

/// Whom to trust and who to be.
#[derive(Clone)]
pub(crate) struct Credentials {
    tls: Arc<ClientConfig>,
}

impl Credentials {
    /// The administrator.
    pub(crate) fn admin(node: &Node) -> Result<Self> {
        Self::with(node, "client-admin.crt", "client-admin.key")
    }

    /// Any certificate of the server's folder with any key, whether they fit or not.
    pub(crate) fn with(node: &Node, certificate: &str, key: &str) -> Result<Self> {
        let tls = |name: &str| node.path("/var/lib/rancher/k3s/server/tls").join(name);
        let chain = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
            let pem = fs::read(tls(name)).with_context(|| format!("cannot read {name}"))?;
            Ok(CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?)
        };
        let mut roots = RootCertStore::empty();
        for root in chain("server-ca.crt")? {
            roots.add(root)?;
        }
        let key = any_supported_type(&PrivateKeyDer::from_pem_file(tls(key))?)?;
        let identity = CertifiedKey::new(chain(certificate)?, key);
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        Ok(Self { tls: Arc::new(tls) })
    }

    /// A TLS connection that speaks the application protocol `alpn`.
    pub(crate) async fn dial(&self, alpn: &str) -> Result<TlsStream<TcpStream>> {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![alpn.into()];
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).await.context("cannot connect to 6443")?;
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.context("the TLS handshake failed")
    }
}

/// One HTTP/2 connection to the API.
#[derive(Clone)]
pub(crate) struct Api {
    requests: http2::SendRequest<Full<Bytes>>,
}

impl Api {
    /// Connects. To be called on the node's network; the connection lives as long as its runtime.
    pub(crate) async fn connect(credentials: &Credentials) -> Result<Self> {
        let io = TokioIo::new(credentials.dial("h2").await?);
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(16 << 20)
            .handshake(io)
            .await?;
        tokio::spawn(async move {
            // Its requests report what is wrong with it.
            let _ = connection.await;
        });
        Ok(Self { requests })
    }

    /// Sends a request and returns when the answer's head is there.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Incoming>> {
        let content = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1:{PORT}{path}"))
            .header("content-type", "application/json")
            .body(Full::from(content))?;
        Ok(self.requests.clone().send_request(request).await?)
    }

    /// Sends a request whose answer has to be a success, and returns it.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (head, body) = self.send(method.clone(), path, body).await?.into_parts();
        let content = body.collect().await?.to_bytes();
        if !head.status.is_success() {
            bail!("{method} {path}: {}: {}", head.status, String::from_utf8_lossy(&content));
        }
        Ok(serde_json::from_slice(&content)?)
    }
}

/// Runs a client on the node's network.
pub(crate) fn on_node<T: Send>(node: &Node, client: impl AsyncFnOnce() -> Result<T> + Send) -> T {
    on_wire(&node.wire(), client)
}

/// Runs a client on a node's network that may outlive the node.
pub(crate) fn on_wire<T: Send>(wire: &Wire, client: impl AsyncFnOnce() -> Result<T> + Send) -> T {
    let ran = wire.run(|| -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(client())
    });
    match ran {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

/// The ConfigMap `name` with `data` as its one value.
pub(crate) fn config_map(name: &str, data: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": data}})
}
