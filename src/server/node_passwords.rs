//! Which node a request for a certificate comes from: nobody gets one for a name that another has taken.
//!
//! ```text
//! the server's own node ─► by its own file, from the first moment to the last
//! all others            ─► before the API is there ─► to come again
//!                          by the node's Secret ─► admitted, or refused
//!                            └─ it cannot be made ─► admitted, checked later
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k3s_controllers::{NodePasswordError, ensure_node_password, node_exists, tell_of_deferred};
use k3s_identity::Password;
use kube::Client;
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    core::Core,
    front::Status,
    routes::{Caller, NodeClaim},
};

/// Passwords that are hashed at the same time: each takes a core and 32 MiB for a tenth of a second.
const AT_ONCE: usize = 2;
/// An agent waits 10 s for its answer.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Between two attempts at what was put off, as in k3s.
const AGAIN: Duration = Duration::from_secs(5);
/// Names that are put off; beyond them nodes have to wait for the API.
const PUT_OFF: usize = 1024;

/// Checks nodes' passwords.
#[derive(Debug)]
pub struct NodePasswords {
    core: Core,
    own: Option<OwnNode>,
    turns: Semaphore,
    /// Nodes that were admitted unchecked, or never asked.
    deferred: watch::Sender<BTreeMap<String, Password>>,
    /// Those whose last attempt was refused: they try for ever, the log says it once.
    refused: Mutex<BTreeSet<String>>,
}

/// The node that the server itself is.
#[derive(Debug, Clone)]
pub struct OwnNode {
    /// Its name.
    pub name: String,
    /// What is in its file.
    pub password: Password,
}

impl NodePasswords {
    /// The server's `own` node never asks, since its certificates are made in its process. Nobody else has its name: here by its file,
    /// from other servers by its Secret.
    pub fn new(core: Core, own: Option<OwnNode>) -> Self {
        let deferred = own.iter().map(|own| (own.name.clone(), own.password.clone())).collect();
        Self {
            core,
            own,
            turns: Semaphore::new(AT_ONCE),
            deferred: watch::Sender::new(deferred),
            refused: Mutex::default(),
        }
    }

    /// Lets a node have certificates for its name, or says why not.
    pub(crate) async fn admit(&self, caller: &Caller, claim: &NodeClaim) -> Result<(), Status> {
        let name = claim.name.as_str();
        if caller.node().is_some_and(|own| own != name) {
            return Err(Status::bad_request("header node name does not match auth node name"));
        }
        if let Some(own) = self.own.as_ref().filter(|own| own.name == name) {
            let mismatch = || NodePasswordError::Mismatch { node: name.to_owned() };
            return if own.password == claim.password { Ok(()) } else { Err(self.refuse(name, &mismatch())) };
        }
        let client = self.core.client()?;
        let checked = async {
            let _turn = self.turns.acquire().await;
            self.check(&client, caller, claim).await
        };
        timeout(TIMEOUT, checked).await.unwrap_or_else(|_| Err(Status::unavailable("apiserver not ready")))
    }

    /// Makes the Secret of the server's own node. To be done before [`Core`] is there: from then on others can ask for names. Where the
    /// API does not take it now, [`Self::check_deferred`] tries on.
    pub async fn remember_own(&self, client: &Client) {
        if let Some(own) = &self.own {
            let _ = timeout(TIMEOUT, self.settle(client, &own.name, &own.password)).await;
        }
    }

    /// Checks what was put off as soon as the API is there, until `shutdown`. A node that turns out to have another's name is told of,
    /// and stays, as in k3s.
    pub async fn check_deferred(&self, shutdown: CancellationToken) {
        let check = async {
            let Some(client) = self.core.ready().await else { return };
            let mut deferred = self.deferred.subscribe();
            while deferred.wait_for(|deferred| !deferred.is_empty()).await.is_ok() {
                let names = deferred.borrow_and_update().clone();
                let mut failed = false;
                for (name, password) in &names {
                    failed |= !self.settle(&client, name, password).await;
                }
                if failed {
                    sleep(AGAIN).await;
                }
            }
        };
        shutdown.run_until_cancelled(check).await;
    }

    async fn check(&self, client: &Client, caller: &Caller, claim: &NodeClaim) -> Result<(), Status> {
        let name = claim.name.as_str();
        if caller.node().is_some() {
            let exists = node_exists(client, name).await.map_err(|error| {
                debug!(node = name, %error, "Whether a node exists is not known.");
                Status::unavailable("apiserver not ready")
            })?;
            if !exists {
                return Err(Status::unauthorized(format!("unable to verify node identity: node {name} not found")));
            }
        }
        match ensure_node_password(client, name, &claim.password).await {
            Ok(()) => {
                self.lock_refused().remove(name);
                Ok(())
            }
            Err(error) if error.is_refusal() => Err(self.refuse(name, &error)),
            // The name is free and the API takes no Secret: a webhook may stand in the way that only a new node's pods can clear.
            Err(error @ NodePasswordError::Uncreated { .. }) => {
                debug!(
                    node = name,
                    error = &error as &dyn std::error::Error,
                    "A node's password cannot be remembered yet."
                );
                self.put_off(claim)
            }
            Err(error) => {
                debug!(node = name, error = &error as &dyn std::error::Error, "A node's password cannot be checked.");
                Err(Status::unavailable("apiserver not ready"))
            }
        }
    }

    fn refuse(&self, name: &str, error: &NodePasswordError) -> Status {
        if self.lock_refused().insert(name.to_owned()) {
            warn!(node = name, %error, "Refused a node.");
        }
        Status::forbidden(error.to_string())
    }

    fn put_off(&self, claim: &NodeClaim) -> Result<(), Status> {
        let mut taken = true;
        self.deferred.send_if_modified(|deferred| {
            let known = deferred.get(claim.name.as_str());
            // The first to come has the name, here too.
            taken = known.map_or(deferred.len() < PUT_OFF, |password| *password == claim.password);
            let new = taken && known.is_none();
            if new {
                deferred.insert(claim.name.to_string(), claim.password.clone());
                info!(node = claim.name.as_str(), "The check of a node's password is put off.");
            }
            new
        });
        if taken { Ok(()) } else { Err(Status::unavailable("the node's password cannot be checked yet")) }
    }

    /// Whether nothing is left to do for this node.
    async fn settle(&self, client: &Client, name: &str, password: &Password) -> bool {
        let checked = ensure_node_password(client, name, password).await;
        match &checked {
            Ok(()) => {}
            Err(error) if error.is_refusal() => {
                warn!(node = name, %error, "A node runs under a name that the cluster knows with another password.");
            }
            Err(error) => {
                debug!(node = name, error = error as &dyn std::error::Error, "A check that was put off has to wait.");
                return false;
            }
        }
        tell_of_deferred(client, name, &checked).await;
        self.deferred.send_modify(|deferred| drop(deferred.remove(name)));
        true
    }

    fn lock_refused(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::Core;

    fn claim(name: &str, password: &str) -> NodeClaim {
        NodeClaim { name: name.parse().unwrap(), password: Password::new(password), ips: Vec::new() }
    }

    fn agent() -> Caller {
        Caller::new("node", &["k3s:agent".to_owned()])
    }

    fn node(name: &str) -> Caller {
        Caller::new(format!("system:node:{name}"), &["system:nodes".to_owned()])
    }

    fn passwords(core: Core) -> NodePasswords {
        NodePasswords::new(core, Some(OwnNode { name: "server".into(), password: Password::new("s3cret") }))
    }

    #[tokio::test]
    async fn before_the_api_only_the_own_node_is_known() {
        let (_sender, core) = Core::pending();
        let passwords = passwords(core);
        for caller in [agent(), node("server")] {
            assert_eq!(passwords.admit(&caller, &claim("server", "s3cret")).await, Ok(()));
        }
        let not_ready = Err(Status::unavailable("runtime core not ready"));
        assert_eq!(passwords.admit(&agent(), &claim("edge-1", "s3cret")).await, not_ready);
    }

    /// An API that has no Secret yet, as at the first start, and takes whatever is first.
    fn forgetful_api() -> Client {
        let answer = |request: http::Request<kube::client::Body>| async move {
            let (code, body) = match *request.method() {
                http::Method::GET => {
                    (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}))
                }
                _ => (201, json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "made"}})),
            };
            let response =
                http::Response::builder().status(code).body(kube::client::Body::from(body.to_string().into_bytes()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn the_own_name_is_nobody_elses_before_its_secret_is_there() {
        let mismatch = NodePasswordError::Mismatch { node: "server".into() };
        let refused = Err(Status::forbidden(mismatch.to_string()));
        let (sender, core) = Core::pending();
        let passwords = passwords(core);
        assert_eq!(passwords.admit(&agent(), &claim("server", "guess")).await, refused);
        sender.send(forgetful_api());
        assert_eq!(passwords.admit(&agent(), &claim("edge-1", "guess")).await, Ok(()), "whose name is free");
        assert_eq!(passwords.admit(&agent(), &claim("server", "guess")).await, refused);
    }

    #[tokio::test]
    async fn a_node_has_no_other_nodes_name() {
        let (_sender, core) = Core::pending();
        let passwords = NodePasswords::new(core, None);
        let refused = passwords.admit(&node("edge-1"), &claim("edge-2", "s3cret")).await;
        assert_eq!(refused, Err(Status::bad_request("header node name does not match auth node name")));
    }

    #[tokio::test]
    async fn what_is_put_off_belongs_to_the_first_that_came() {
        let (_sender, core) = Core::pending();
        let passwords = NodePasswords::new(core, None);
        assert_eq!(passwords.put_off(&claim("edge-1", "one")), Ok(()));
        assert_eq!(passwords.put_off(&claim("edge-1", "one")), Ok(()), "both certificates");
        assert!(passwords.put_off(&claim("edge-1", "two")).is_err());
        for count in 1..PUT_OFF {
            assert_eq!(passwords.put_off(&claim(&format!("flood-{count}"), "x")), Ok(()));
        }
        assert!(passwords.put_off(&claim("one-too-many", "x")).is_err());
    }
}
