//! Where the store is served: unix sockets and TCP, and who may connect.

use std::fmt;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::datastore::Datastore;
use crate::error::Error;
use crate::tls::ServerTls;

/// Something that connections come from.
pub trait Listener: Send {
    /// One connection.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is left to do until a connection can be used. It is done apart, so that a slow client holds up no other.
    type Handshake: Future<Output = io::Result<Self::Connection>> + Send + 'static;

    /// Waits for the next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Handshake>> + Send;

    /// The address as a URL, for clients that ask for it.
    fn url(&self) -> String;
}

impl Listener for UnixListener {
    type Connection = UnixStream;
    type Handshake = Ready<io::Result<UnixStream>>;

    async fn accept(&mut self) -> io::Result<Self::Handshake> {
        let (stream, _) = Self::accept(self).await?;
        Ok(ready(Ok(stream)))
    }

    fn url(&self) -> String {
        let address = self.local_addr().ok();
        let path = address.as_ref().and_then(|address| address.as_pathname());
        format!("unix://{}", path.unwrap_or(Path::new("")).display())
    }
}

impl Listener for TcpListener {
    type Connection = TcpStream;
    type Handshake = Ready<io::Result<TcpStream>>;

    async fn accept(&mut self) -> io::Result<Self::Handshake> {
        Ok(ready(Ok(accept_tcp(self).await?)))
    }

    fn url(&self) -> String {
        self.local_addr().map(|address| format!("http://{address}")).unwrap_or_default()
    }
}

/// A TCP port whose connections speak TLS.
#[derive(Debug)]
pub struct TlsListener {
    listener: TcpListener,
    tls: ServerTls,
}

impl Listener for TlsListener {
    type Connection = TlsStream<TcpStream>;
    type Handshake = tokio_rustls::Accept<TcpStream>;

    async fn accept(&mut self) -> io::Result<Self::Handshake> {
        let stream = accept_tcp(&self.listener).await?;
        Ok(self.tls.acceptor().accept(stream))
    }

    fn url(&self) -> String {
        self.listener.local_addr().map(|address| format!("https://{address}")).unwrap_or_default()
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // It fails for a client that has left again; its connection will tell.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// An address to listen on, parsed: `unix:///PATH`, `http://IP:PORT` or `https://IP:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket at this absolute path; only its owner may connect.
    Unix(PathBuf),
    /// Plain TCP.
    Http(SocketAddr),
    /// TLS.
    Https(SocketAddr),
}

/// Whom endpoints on TCP serve. By default: who can connect over loopback.
///
/// Whoever is served can read and change every object of a cluster, so beyond loopback clients have to show a
/// certificate, unless `insecure` says that something else keeps strangers off.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What `https` endpoints are served with.
    pub tls: Option<ServerTls>,
    /// Serve whoever can connect, beyond loopback too.
    pub insecure: bool,
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::address(text, reason);
        let address = |text: &str| {
            let address = text.trim_end_matches('/').parse::<SocketAddr>();
            address.map_err(|_| refuse("expected an IP address and a port, as in http://127.0.0.1:2379"))
        };
        match text.split_once("://") {
            Some(("unix", path)) if Path::new(path).is_absolute() => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => Err(refuse("the path of the socket must be absolute, as in unix:///run/k3s.sock")),
            Some(("http", rest)) => address(rest).map(Self::Http),
            Some(("https", rest)) => address(rest).map(Self::Https),
            _ => Err(refuse("expected unix:///PATH, http://IP:PORT or https://IP:PORT")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
        }
    }
}

/// A bound [`Endpoint`].
#[derive(Debug)]
pub enum BoundEndpoint {
    /// A unix socket that only its owner may connect to.
    Unix(UnixListener),
    /// A TCP port.
    Http(TcpListener),
    /// A TCP port that speaks TLS.
    Https(TlsListener),
}

impl Endpoint {
    /// Binds the address. A socket that a process left behind is replaced; one that answers is not.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Address`] when the address cannot be had, or would let strangers in.
    pub async fn bind(&self, access: &Access) -> Result<BoundEndpoint, Error> {
        let refuse = |reason| Error::address(&self.to_string(), reason);
        let open = |address: &SocketAddr| address.ip().is_loopback() || access.insecure;
        match self {
            Self::Unix(path) => bind_unix(path).await.map(BoundEndpoint::Unix),
            Self::Http(address) if !open(address) => Err(refuse(
                "beyond loopback everybody could read every Secret: use https with client certificates, or --insecure-listen",
            )),
            Self::Http(address) => self.bind_tcp(address).await.map(BoundEndpoint::Http),
            Self::Https(address) => match &access.tls {
                None => Err(refuse("https needs a certificate and its key: --cert-file and --key-file")),
                Some(tls) if !tls.verifies_clients() && !open(address) => Err(refuse(
                    "beyond loopback clients must show a certificate: name its authority with --trusted-ca-file, \
                     or say --insecure-listen",
                )),
                Some(tls) => {
                    let listener = self.bind_tcp(address).await?;
                    Ok(BoundEndpoint::Https(TlsListener { listener, tls: tls.clone() }))
                }
            },
        }
    }

    pub(crate) async fn bind_tcp(&self, address: &SocketAddr) -> Result<TcpListener, Error> {
        TcpListener::bind(address).await.map_err(|error| Error::address(&self.to_string(), &error.to_string()))
    }
}

impl BoundEndpoint {
    /// Serves a store here; see [`Datastore::serve`].
    ///
    /// # Errors
    /// [`Error::File`] when the listener fails.
    pub async fn serve(self, datastore: &Datastore, shutdown: CancellationToken) -> Result<(), Error> {
        match self {
            Self::Unix(listener) => datastore.serve(listener, shutdown).await,
            Self::Http(listener) => datastore.serve(listener, shutdown).await,
            Self::Https(listener) => datastore.serve(listener, shutdown).await,
        }
    }
}

async fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => {
            use std::os::unix::fs::FileTypeExt as _;
            if !found.file_type().is_socket() {
                let there = io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there");
                return Err(Error::file("listen on", path)(there));
            }
            if UnixStream::connect(path).await.is_ok() {
                let used = io::Error::new(io::ErrorKind::AddrInUse, "another process listens there");
                return Err(Error::file("listen on", path)(used));
            }
            std::fs::remove_file(path).map_err(Error::file("remove the old socket", path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::file("listen on", path)(error)),
    }
    let listener = UnixListener::bind(path).map_err(Error::file("listen on", path))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).map_err(Error::file("protect", path))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn addresses_are_parsed_or_refused_with_a_reason() {
        for good in ["unix:///run/k3s/kine.sock", "http://127.0.0.1:2379", "https://[::1]:2379"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for (bad, reason) in [
            ("unix://kine.sock", "must be absolute"),
            ("tcp://127.0.0.1:1", "expected unix"),
            ("127.0.0.1:1", "expected unix"),
            ("http://localhost:2379", "expected an IP address and a port"),
            ("https://127.0.0.1", "expected an IP address and a port"),
        ] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(bad), "{error}");
        }
    }

    #[tokio::test]
    async fn beyond_loopback_strangers_are_kept_off() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::new(folder.path(), "ca");
        let server = ca.issue("server");
        let tls = |trusted_ca| Some(ServerTls::load(&server.certificate, &server.key, trusted_ca).unwrap());
        let bind = async |endpoint: &str, tls, insecure| {
            let endpoint: Endpoint = endpoint.parse().unwrap();
            endpoint.bind(&Access { tls, insecure }).await.map(drop).map_err(|error| error.to_string())
        };
        let refused = |bound: Result<(), String>, remedy: &str| {
            let error = bound.unwrap_err();
            assert!(error.contains(remedy), "{error}");
        };
        bind("http://127.0.0.1:0", None, false).await.unwrap();
        refused(bind("http://0.0.0.0:0", None, false).await, "client certificates, or --insecure-listen");
        refused(bind("http://[::]:0", tls(Some(&ca.certificate)), false).await, "use https");
        bind("http://0.0.0.0:0", None, true).await.unwrap();
        refused(bind("https://127.0.0.1:0", None, true).await, "--cert-file and --key-file");
        bind("https://127.0.0.1:0", tls(None), false).await.unwrap();
        refused(bind("https://0.0.0.0:0", tls(None), false).await, "--trusted-ca-file");
        bind("https://0.0.0.0:0", tls(None), true).await.unwrap();
        bind("https://0.0.0.0:0", tls(Some(&ca.certificate)), false).await.unwrap();
    }

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let endpoint = Endpoint::Unix(path.clone());
        let live = endpoint.bind(&Access::default()).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(endpoint.bind(&Access::default()).await.unwrap_err().to_string().contains("another process"));
        drop(live);
        endpoint.bind(&Access::default()).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(endpoint.bind(&Access::default()).await.unwrap_err().to_string().contains("no socket"));
    }
}
