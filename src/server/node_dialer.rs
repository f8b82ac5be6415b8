//! How this server reaches kubelets and pods: through their nodes' tunnels, or directly.

use std::{io, time::Duration};

use k3s_splice::ReadFirst;
use k3s_tunnel::{Destination, Egress, NoTunnel, Route, Target, TunnelStream, Tunnels};
use tokio::{
    net::{TcpStream, ToSocketAddrs},
    sync::watch,
    time::timeout,
};
use tokio_util::either::Either;
use tracing::debug;

/// As long as kube-apiserver waits for what it dials itself.
const DIAL: Duration = Duration::from_secs(30);

/// What reaches nodes.
#[derive(Debug, Clone)]
pub struct NodeDialer {
    /// The tunnels that nodes have opened.
    pub tunnels: Tunnels,
    /// What is known of nodes and pods.
    pub egress: watch::Receiver<Egress>,
}

/// A connection by one of the two ways.
pub(crate) type Connection = Either<TunnelStream, ReadFirst<TcpStream>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The node is reached through its tunnel alone, and has none to this server.
    #[error("{0}: the node is not connected to this server")]
    NoTunnel(#[from] NoTunnel),
    /// It does not answer, or not there.
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
}

impl NodeDialer {
    /// Connects. Through a tunnel nothing is waited for: that the node cannot connect shows in the connection.
    pub(crate) async fn dial(&self, destination: Destination) -> Result<Connection, DialError> {
        let route = self.egress.borrow().route(destination);
        debug!(?route, "Dialling for kube-apiserver.");
        match route {
            Route::Direct(destination) => direct(destination.to_string()).await,
            Route::Node { node, address } => {
                Ok(Either::Left(self.tunnels.dial(&node, Target::tcp(address.to_string()))?))
            }
            Route::Pod { node, address } => match self.tunnels.dial(&node, Target::tcp(address.to_string())) {
                Ok(stream) => Ok(Either::Left(stream)),
                Err(NoTunnel(_)) => direct(address.to_string()).await,
            },
        }
    }
}

async fn direct(address: String) -> Result<Connection, DialError> {
    let dialled = timeout(DIAL, connect(&address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    dialled.map(ReadFirst::new).map(Either::Right).map_err(|source| DialError::Connect { address, source })
}

async fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
