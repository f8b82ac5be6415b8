//! The API as this process uses it: there from the moment its part of the start is done.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc};

use k3s_controllers::{ClusterView, Derived, Neighbour};
use k3s_http::Status;
use kube::Client;
use tokio::sync::watch;

/// Where a client, and what is seen with it, appears once there is one, with the rights of `system:masters`. k3s calls this moment "runtime
/// core ready".
#[derive(Clone)]
pub struct AdminClient(watch::Receiver<Option<Seen>>);

/// What is seen of the cluster.
#[derive(Clone)]
pub(crate) struct Seen {
    client: Client,
    /// Its nodes, by what others must not have.
    pub(crate) nodes: Derived<Arc<Vec<Neighbour>>>,
    /// Where its API is published.
    pub(crate) servers: Derived<BTreeSet<SocketAddr>>,
}

/// Makes it appear.
pub struct AdminClientSender(watch::Sender<Option<Seen>>);

impl AdminClient {
    /// Both ends; nothing is there yet.
    pub fn pending() -> (AdminClientSender, Self) {
        let (sender, receiver) = watch::channel(None);
        (AdminClientSender(sender), Self(receiver))
    }

    /// The client, or what is answered while there is none.
    ///
    /// # Errors
    /// 503 until the API answers.
    pub fn client(&self) -> Result<Client, Status> {
        self.seen().map(|seen| seen.client)
    }

    /// What is seen of the cluster, or what is answered while that is nothing.
    ///
    /// # Errors
    /// 503 until the API answers.
    pub(crate) fn seen(&self) -> Result<Seen, Status> {
        self.0.borrow().clone().ok_or_else(|| Status::unavailable("runtime core not ready"))
    }
}

impl AdminClientSender {
    /// There it is. Whoever asks is on the front's thread, which is not for watches: they begin here.
    pub fn send(&self, view: &ClusterView) {
        let client = view.client().clone();
        self.0.send_replace(Some(Seen { client, nodes: view.neighbours(), servers: view.api_endpoints() }));
    }
}

impl fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdminClient").field(&self.0.borrow().is_some()).finish()
    }
}
