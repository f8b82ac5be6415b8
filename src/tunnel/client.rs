//! A node's side: it connects to a server and dials what the server asks for.
//!
//! ```text
//! Tunnel::connect ──▶ connected ──Tunnel::serve──▶ ended: connect again, k3s waits a second
//! ```

use std::{io, net::SocketAddr, time::Duration};

use k3s_splice::{ReadFirst, splice};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    PATH,
    dialect::Dialect,
    driver::{Driver, SessionError, websocket_config},
    link::{Asked, Link},
    rules::Rules,
    session::Role,
    stream::TunnelStream,
};

/// For the websocket's handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a connection on behalf of a server.
const DIAL: Duration = Duration::from_secs(60);

/// A tunnel to one server that is connected and waits to be served. Connecting is what k3s' health check of a server asks for.
#[derive(Debug)]
pub struct Tunnel<IO> {
    socket: WebSocketStream<IO>,
    dialect: Dialect,
}

/// Why there is no tunnel to a server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server answered otherwise; 401 and 403 speak of the node's certificate.
    #[error("the server refuses a tunnel with {status}: {body}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said, as far as it came with the head.
        body: String,
    },
    /// The server did not answer.
    #[error("the server did not answer within {} s", HANDSHAKE.as_secs())]
    Timeout,
    /// The address of the server is no URL's.
    #[error("{0} is not host:port")]
    Address(String),
    /// The connection broke, or what answers is no websocket server.
    #[error("the websocket handshake failed")]
    Handshake(#[source] Box<tungstenite::Error>),
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin> Tunnel<IO> {
    /// Asks the server at the other end of `io`, whose name is `server` (`host:port`), for a tunnel. `io` is a TLS connection with
    /// the kubelet's client certificate, by which the server knows the node.
    ///
    /// # Errors
    /// The server refuses, is none that has tunnels, or breaks off.
    pub async fn connect(io: IO, server: &str) -> Result<Self, ConnectError> {
        let url = format!("wss://{server}{PATH}");
        let mut request = url.into_client_request().map_err(|_| ConnectError::Address(server.to_owned()))?;
        Dialect::HalfClose.tell(request.headers_mut());
        let handshake = client_async_with_config(request, io, Some(websocket_config()));
        match timeout(HANDSHAKE, handshake).await {
            Ok(Ok((socket, response))) => Ok(Self { socket, dialect: Dialect::of(response.headers()) }),
            Ok(Err(tungstenite::Error::Http(response))) => Err(ConnectError::Refused {
                status: response.status().as_u16(),
                body: String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned(),
            }),
            Ok(Err(error)) => Err(ConnectError::Handshake(Box::new(error))),
            Err(_) => Err(ConnectError::Timeout),
        }
    }

    /// Dials for the server what `rules` allow at that moment, until `shutdown` or until the tunnel ends. When it returns, nothing
    /// that was dialled is left.
    ///
    /// A server that asks for anything else is refused that connection alone. k3s' agents end the tunnel: a pod that has just gone would
    /// take everybody's exec and logs with it.
    ///
    /// # Errors
    /// How the tunnel ended, unless by `shutdown`.
    pub async fn serve(self, rules: watch::Receiver<Rules>, shutdown: &CancellationToken) -> Result<(), SessionError> {
        let dials = TaskTracker::new();
        let cut = CancellationToken::new();
        // Nothing runs on unseen when the caller gives this future up.
        let _cut = cut.clone().drop_guard();
        let dial = |Asked { target, stream }| {
            let address = rules.borrow().address_for(&target);
            let Some(address) = address else {
                debug!(%target, "A server asked for what this node does not lead to.");
                stream.fail(format!("connect not allowed: {target}"));
                return Ok(());
            };
            dials.spawn(cut.clone().run_until_cancelled_owned(carry(stream, address)));
            Ok(())
        };
        let link = Link::new(Role::Client, self.dialect, "client/0".to_owned());
        let ended = Driver::new(self.socket, link).run(dial, shutdown).await;
        cut.cancel();
        dials.close();
        dials.wait().await;
        ended
    }
}

/// Dials and carries bytes until both sides have ended.
async fn carry(stream: TunnelStream, address: SocketAddr) {
    let dialled =
        timeout(DIAL, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let connection = dialled.and_then(|connection| connection.set_nodelay(true).map(|()| connection));
    match connection {
        Ok(connection) => {
            if let Err(error) = splice(stream, ReadFirst::new(connection)).await {
                debug!(%address, %error, "A connection through the tunnel broke off.");
            }
        }
        Err(error) => {
            debug!(%address, %error, "Cannot dial what a server asked for.");
            stream.fail(format!("dial tcp {address}: {error}"));
        }
    }
}
