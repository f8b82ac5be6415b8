//! One connection, and the requests that clients of a Kubernetes API make.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a client may hold of answers that it has not read, in bytes: on a stream, and on a connection.
const WINDOWS: (u32, u32) = (256 << 10, 16 << 20);

/// Where the API is, and how to prove oneself to it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    tls: TlsConnector,
}

/// An HTTP/2 connection of its own. Its clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, ca: &Path, certificate: &Path, key: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificates = |path: &Path| -> Result<Vec<_>> {
            let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            all.with_context(|| format!("cannot read {}", path.display()))
        };
        for ca in certificates(ca)? {
            roots.add(ca)?;
        }
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {}", key.display()))?;
        let mut tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(certificate)?, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { address, tls: TlsConnector::from(Arc::new(tls)) })
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        let address = self.address;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = self.tls.connect(ServerName::IpAddress(address.ip().into()), stream).await?;
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(WINDOWS.0)
                .initial_connection_window_size(WINDOWS.1)
                .handshake(TokioIo::new(stream))
                .await?;
            // It ends with the last sender; what goes wrong, requests tell.
            tokio::spawn(connection);
            anyhow::Ok(Connection { address, sender })
        };
        connect.await.with_context(|| format!("cannot connect to {address}"))
    }
}

impl Connection {
    /// The whole answer of a request that has to succeed.
    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        Ok(self.send(method, path, body).await?.collect().await?.to_bytes())
    }

    /// The answer as it comes.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Incoming> {
        let request = Request::builder()
            .method(&method)
            .uri(format!("https://{}{path}", self.address))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let made = [StatusCode::OK, StatusCode::CREATED].contains(&head.status);
        ensure!(made, "{method} {path} was answered with {}", head.status);
        Ok(body)
    }
}
