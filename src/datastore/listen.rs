//! Where the store is served: unix sockets, and TCP on loopback.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::error::Error;

/// Something that connections come from.
pub trait Listener: Send {
    /// One connection.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Connection>> + Send;

    /// The address as a URL, for clients that ask for it.
    fn url(&self) -> String;
}

impl Listener for UnixListener {
    type Connection = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }

    fn url(&self) -> String {
        let address = self.local_addr().ok();
        let path = address.as_ref().and_then(|address| address.as_pathname());
        format!("unix://{}", path.unwrap_or(Path::new("")).display())
    }
}

impl Listener for TcpListener {
    type Connection = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        // It fails for a client that has left again; its connection will tell.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    fn url(&self) -> String {
        self.local_addr().map(|address| format!("http://{address}")).unwrap_or_default()
    }
}

/// An address to listen on, parsed: `unix:///path` or `http://IP:PORT`.
///
/// TCP is only taken on loopback: whoever can connect can read every secret of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket at this absolute path.
    Unix(PathBuf),
    /// Plain TCP on a loopback address.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Address { address: text.to_owned(), reason: reason.to_owned() };
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(refuse("the path of the socket must be absolute, as in unix:///run/k3s.sock"))
            };
        }
        let address = text
            .strip_prefix("http://")
            .and_then(|address| address.trim_end_matches('/').parse::<SocketAddr>().ok())
            .ok_or_else(|| refuse("expected unix:///PATH or http://IP:PORT"))?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(refuse("only loopback addresses are served without TLS; use 127.0.0.1 or a unix socket"))
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

/// A bound [`Endpoint`].
#[derive(Debug)]
pub enum BoundEndpoint {
    /// A unix socket that only its owner may connect to.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

impl Endpoint {
    /// Binds the address. A socket that a process left behind is replaced; one that answers is not.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Address`] when the address cannot be had.
    pub async fn bind(&self) -> Result<BoundEndpoint, Error> {
        match self {
            Self::Unix(path) => bind_unix(path).await.map(BoundEndpoint::Unix),
            Self::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => Ok(BoundEndpoint::Tcp(listener)),
                Err(error) => Err(Error::Address { address: self.to_string(), reason: error.to_string() }),
            },
        }
    }
}

impl BoundEndpoint {
    /// Serves a store here; see [`crate::Datastore::serve`].
    ///
    /// # Errors
    /// [`Error::File`] when the listener fails.
    pub async fn serve(
        self,
        datastore: &crate::Datastore,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Result<(), Error> {
        match self {
            Self::Unix(listener) => datastore.serve(listener, shutdown).await,
            Self::Tcp(listener) => datastore.serve(listener, shutdown).await,
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

    #[test]
    fn addresses_are_parsed_or_refused_with_a_reason() {
        for good in ["unix:///run/k3s/kine.sock", "http://127.0.0.1:2379", "http://[::1]:2379"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for (bad, reason) in [
            ("unix://kine.sock", "must be absolute"),
            ("http://192.168.1.1:2379", "only loopback"),
            ("tcp://127.0.0.1:1", "expected unix"),
            ("http://localhost:2379", "expected unix"),
        ] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(bad), "{error}");
        }
    }

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let endpoint = Endpoint::Unix(path.clone());
        let live = endpoint.bind().await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(endpoint.bind().await.unwrap_err().to_string().contains("another process"));
        drop(live);
        endpoint.bind().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(endpoint.bind().await.unwrap_err().to_string().contains("no socket"));
    }
}
