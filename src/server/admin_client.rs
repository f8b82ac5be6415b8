//! The API as this process uses it: there from the moment its part of the start is done.

use std::fmt;

use k3s_controllers::ClusterView;
use k3s_http::Status;
use kube::Client;
use tokio::sync::watch;

/// Where a client, and what is seen with it, appears once there is one, with the rights of `system:masters`. k3s calls this moment "runtime
/// core ready".
#[derive(Clone)]
pub struct AdminClient(watch::Receiver<Option<ClusterView>>);

/// Makes it appear.
pub struct AdminClientSender(watch::Sender<Option<ClusterView>>);

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
        self.view().map(|view| view.client().clone())
    }

    /// What is seen of the cluster, or what is answered while that is nothing.
    ///
    /// # Errors
    /// 503 until the API answers.
    pub fn view(&self) -> Result<ClusterView, Status> {
        self.0.borrow().clone().ok_or_else(|| Status::unavailable("runtime core not ready"))
    }
}

impl AdminClientSender {
    /// There it is.
    pub fn send(&self, view: ClusterView) {
        self.0.send_replace(Some(view));
    }
}

impl fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdminClient").field(&self.0.borrow().is_some()).finish()
    }
}
