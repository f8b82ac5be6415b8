//! The API as this process uses it: there from the moment its part of the start is done.

use std::fmt;

use k3s_http::Status;
use kube::Client;
use tokio::sync::watch;

/// Where a client appears once there is one, with the rights of `system:masters`. k3s calls this moment "runtime core ready".
#[derive(Clone)]
pub struct AdminClient(watch::Receiver<Option<Client>>);

/// Makes it appear.
pub struct AdminClientSender(watch::Sender<Option<Client>>);

impl AdminClient {
    /// Both ends; nothing is there yet.
    pub fn pending() -> (AdminClientSender, Self) {
        let (sender, receiver) = watch::channel(None);
        (AdminClientSender(sender), Self(receiver))
    }

    /// The client, or what is answered while there is none.
    pub fn client(&self) -> Result<Client, Status> {
        self.0.borrow().clone().ok_or_else(|| Status::unavailable("runtime core not ready"))
    }

    /// The client, once there is one; `None` if there never will be.
    pub async fn ready(&self) -> Option<Client> {
        self.0.clone().wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl AdminClientSender {
    /// There it is.
    pub fn send(&self, client: Client) {
        self.0.send_replace(Some(client));
    }
}

impl fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdminClient").field(&self.0.borrow().is_some()).finish()
    }
}
