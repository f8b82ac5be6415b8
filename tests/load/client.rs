//! Connections to a Kubernetes API.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use hyper::{
    body::Body,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What a client may hold of an answer that it has not read, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same of all answers on a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Where the API is, and the files by which either end proves who it is.
#[derive(clap::Args, Debug)]
pub struct Endpoint {
    /// Where it listens: IP:PORT.
    address: SocketAddr,
    /// What its certificate is signed by.
    #[arg(long)]
    ca: PathBuf,
    /// Whom to be.
    #[arg(long)]
    certificate: PathBuf,
    /// The certificate's key.
    #[arg(long)]
    key: PathBuf,
}

/// Where the API is, and as whom to reach it.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    tls: TlsConnector,
}

/// A certificate with its chain, and its key.
type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Client {
    /// A client with the certificate that `endpoint` names.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn identified(endpoint: &Endpoint) -> Result<Self> {
        Self::new(endpoint, true)
    }

    /// A client that shows no certificate.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn anonymous(endpoint: &Endpoint) -> Result<Self> {
        Self::new(endpoint, false)
    }

    fn new(Endpoint { address, ca, certificate, key }: &Endpoint, shows_certificate: bool) -> Result<Self> {
        let certificates = |path: &Path| -> Result<Vec<_>> {
            let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            all.with_context(|| format!("cannot read {}", path.display()))
        };
        let mut roots = RootCertStore::empty();
        for ca in certificates(ca)? {
            roots.add(ca)?;
        }
        let credentials = if shows_certificate {
            let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {}", key.display()))?;
            Some((certificates(certificate)?, key))
        } else {
            None
        };
        Self::with(*address, Arc::new(roots), credentials)
    }

    /// A client of the same API with another certificate and its key, in PEM.
    ///
    /// # Errors
    /// They are not what they should be.
    pub fn holding(&self, certificate: &str, key: &str) -> Result<Self> {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        Self::with(self.address, self.roots.clone(), Some((chain, key)))
    }

    fn with(address: SocketAddr, roots: Arc<RootCertStore>, credentials: Option<Credentials>) -> Result<Self> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots.clone());
        let mut tls = match credentials {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { address, roots, tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// Where the API is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// TLS on a connection to the API.
    ///
    /// # Errors
    /// The handshake fails.
    pub async fn handshake(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.tls.connect(ServerName::IpAddress(self.address.ip().into()), tcp).await
    }

    /// An HTTP/2 connection of its own. It ends with the last sender; what goes wrong, requests tell.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn http2<B>(&self) -> Result<SendRequest<B>>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + Send + 'static,
    {
        self.http2_with_window(STREAM_WINDOW).await
    }

    /// The same, taking no more than `window` bytes of an answer before it is read.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn http2_with_window<B>(&self, window: u32) -> Result<SendRequest<B>>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + Send + 'static,
    {
        let connect = async {
            let tcp = TcpStream::connect(self.address).await?;
            tcp.set_nodelay(true)?;
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(window)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(TokioIo::new(self.handshake(tcp).await?))
                .await?;
            tokio::spawn(connection);
            anyhow::Ok(sender)
        };
        connect.await.with_context(|| format!("cannot connect to {}", self.address))
    }
}
