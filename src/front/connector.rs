//! Connections to kube-apiserver.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::paced::{Paced, Space};

/// How long kube-apiserver may take to accept and shake hands: it is on loopback.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Opens connections with one identity, or with none.
#[derive(Clone)]
pub(super) struct Connector {
    address: SocketAddr,
    tls: TlsConnector,
    space: Space,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    #[error("cannot connect to kube-apiserver at {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("the TLS handshake with kube-apiserver at {address} failed")]
    Handshake { address: SocketAddr, source: io::Error },
    #[error("kube-apiserver at {address} did not answer within {} s", TIMEOUT.as_secs())]
    Timeout { address: SocketAddr },
    #[error("kube-apiserver at {address} does not speak HTTP/2")]
    Protocol { address: SocketAddr },
    #[error("kube-apiserver at {address} broke off")]
    Http { address: SocketAddr, source: hyper::Error },
}

impl Connector {
    pub(super) fn new(address: SocketAddr, tls: ClientConfig) -> Self {
        Self { address, tls: TlsConnector::from(Arc::new(tls)), space: Space::new() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection that speaks HTTP/2, which many requests are to share.
    pub(super) async fn http2(&self) -> Result<TlsStream<Paced<TcpStream>>, Unreachable> {
        let stream = self.connect(b"h2", |stream| Paced::new(stream, self.space.clone())).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(stream),
            _ => Err(Unreachable::Protocol { address: self.address }),
        }
    }

    /// A connection that speaks HTTP/1.1.
    pub(super) async fn http1(&self) -> Result<TlsStream<TcpStream>, Unreachable> {
        self.connect(b"http/1.1", |stream| stream).await
    }

    async fn connect<S>(&self, protocol: &[u8], wrap: impl FnOnce(TcpStream) -> S) -> Result<TlsStream<S>, Unreachable>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let address = self.address;
        let connect = async {
            let connect_error = |source| Unreachable::Connect { address, source };
            let stream = TcpStream::connect(address).await.map_err(connect_error)?;
            stream.set_nodelay(true).map_err(connect_error)?;
            let tls = self.tls.with_alpn(vec![protocol.to_vec()]);
            let name = ServerName::IpAddress(address.ip().into());
            tls.connect(name, wrap(stream)).await.map_err(|source| Unreachable::Handshake { address, source })
        };
        tokio::time::timeout(TIMEOUT, connect).await.unwrap_or(Err(Unreachable::Timeout { address }))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("address", &self.address).finish_non_exhaustive()
    }
}
