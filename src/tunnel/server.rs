//! A server's side: the tunnels that nodes have opened, and connections through them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, handshake::server::create_response_with_body, protocol},
};
use tokio_util::sync::CancellationToken;

use crate::{
    dialect::Dialect,
    driver::{Driver, SessionError, websocket_config},
    link::{Asked, Link},
    message::Target,
    session::{Role, Violation},
    stream::TunnelStream,
};

/// Tunnels of one node: it opens one to each server, and those that stand of a former life or of a path that broke are noticed within a
/// minute. Each may hold a message of a MiB and its connections' windows.
const OF_NODE: usize = 8;

/// The tunnels of all nodes. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tunnels(Arc<Mutex<Registry>>);

/// By node, its tunnels, the newest last.
#[derive(Debug, Default)]
struct Registry {
    nodes: HashMap<String, Vec<Open>>,
    /// Counts tunnels: their names in messages.
    last: u64,
}

/// A tunnel that stands.
#[derive(Debug)]
struct Open {
    link: Arc<Link>,
    /// Ends it.
    end: CancellationToken,
}

/// A node to which there is no tunnel; remotedialer's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to find Session for client {0}")]
pub struct NoTunnel(pub String);

/// Why a request does not become a tunnel: status 400.
#[derive(Debug, thiserror::Error)]
#[error("Error during upgrade for host [{node}]: {source}")]
pub struct NoUpgrade {
    /// Who asked.
    pub node: String,
    /// What is missing.
    source: Box<tungstenite::Error>,
}

/// What agrees to make `request` a tunnel of `node`: the head of a `101 Switching Protocols`, after which the connection belongs to
/// [`Tunnels::serve`]. It accepts what the request offers ([`Dialect::of`]).
///
/// # Errors
/// It does not ask for a websocket.
pub fn upgrade<B>(request: &Request<B>, node: &str) -> Result<Response<()>, NoUpgrade> {
    let mut response = create_response_with_body(request, || ())
        .map_err(|error| NoUpgrade { node: node.to_owned(), source: Box::new(error) })?;
    Dialect::of(request.headers()).tell(response.headers_mut());
    Ok(response)
}

impl Tunnels {
    /// Serves a tunnel that `node` has opened, whose handshake agreed on `dialect`, until `shutdown`, until it ends, or until the node has
    /// opened eight newer ones.
    ///
    /// # Errors
    /// Why it has ended, unless it was `shutdown`.
    pub async fn serve<IO>(
        &self,
        node: &str,
        dialect: Dialect,
        io: IO,
        shutdown: &CancellationToken,
    ) -> Result<(), SessionError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let socket = WebSocketStream::from_raw_socket(io, protocol::Role::Server, Some(websocket_config())).await;
        let end = shutdown.child_token();
        let registered = self.register(node, dialect, end.clone());
        let driver = Driver::new(socket, registered.link.clone());
        // A client that asks for a connection breaks the protocol before this is reached.
        driver.run(|Asked { target, .. }| Err(Violation::ClientConnects(target).into()), &end).await
    }

    /// A connection through the newest tunnel of `node`: after a power cut at the node, its former one seems to stand for a minute.
    /// (remotedialer takes the oldest.)
    ///
    /// Nothing tells whether the node could connect: if not, reading and writing fail with what it said.
    ///
    /// # Errors
    /// The node has no tunnel to this server.
    pub fn dial(&self, node: &str, target: Target) -> Result<TunnelStream, NoTunnel> {
        // One that has just ended is about to leave the list.
        let stream = self
            .lock()
            .nodes
            .get(node)
            .and_then(|open| open.iter().rev().find_map(|tunnel| tunnel.link.connect(target.clone())));
        stream.ok_or_else(|| NoTunnel(node.to_owned()))
    }

    /// Whether `node` can be reached.
    pub fn reaches(&self, node: &str) -> bool {
        self.lock().nodes.contains_key(node)
    }

    fn register(&self, node: &str, dialect: Dialect, end: CancellationToken) -> Registered {
        let mut registry = self.lock();
        registry.last += 1;
        let link = Link::new(Role::Server, dialect, format!("{node}/{}", registry.last));
        let open = registry.nodes.entry(node.to_owned()).or_default();
        if open.len() >= OF_NODE {
            open.remove(0).end.cancel();
        }
        open.push(Open { link: link.clone(), end });
        Registered { tunnels: self.clone(), node: node.to_owned(), link }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().expect("no method of the tunnels panics")
    }
}

/// A tunnel for as long as it is listed.
struct Registered {
    tunnels: Tunnels,
    node: String,
    link: Arc<Link>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut registry = self.tunnels.lock();
        let Some(open) = registry.nodes.get_mut(&self.node) else { return };
        open.retain(|tunnel| !Arc::ptr_eq(&tunnel.link, &self.link));
        if open.is_empty() {
            registry.nodes.remove(&self.node);
        }
    }
}
