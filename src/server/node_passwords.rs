//! Which node a request for a certificate comes from: nobody gets one for a name that another has taken.
//!
//! ```text
//! the API is there ─► by the node's Secret ─► admitted, or refused
//!                       └─ the Secret cannot be made ─► admitted, checked later
//! it is not yet    ─► the server's own node, from this machine ─► by its own file
//!                     all others ─► to come again
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
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
    /// Where the server listens, unless everywhere: the node asks from there, or from loopback.
    pub address: Option<IpAddr>,
}

impl NodePasswords {
    /// The server's `own` node never asks, since its certificates are made in its process; its password is remembered nevertheless, so
    /// that nobody else has its name.
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
    pub(crate) async fn admit(&self, caller: &Caller, claim: &NodeClaim, from: IpAddr) -> Result<(), Status> {
        let name = claim.name.as_str();
        if caller.node().is_some_and(|own| own != name) {
            return Err(Status::bad_request("header node name does not match auth node name"));
        }
        let Ok(client) = self.core.client() else { return self.admit_early(claim, from) };
        let checked = async {
            let _turn = self.turns.acquire().await;
            self.check(&client, caller, claim).await
        };
        timeout(TIMEOUT, checked).await.unwrap_or_else(|_| Err(Status::unavailable("apiserver not ready")))
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

    /// Without the API, only the server's own node is known.
    fn admit_early(&self, claim: &NodeClaim, from: IpAddr) -> Result<(), Status> {
        let from = from.to_canonical();
        match &self.own {
            Some(own) if own.name == claim.name.as_str() && (from.is_loopback() || Some(from) == own.address) => {
                if own.password == claim.password {
                    return Ok(());
                }
                Err(self.refuse(&own.name, &NodePasswordError::Mismatch { node: own.name.clone() }))
            }
            _ => Err(Status::unavailable("runtime core not ready")),
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

    #[tokio::test]
    async fn before_the_api_only_the_own_node_is_known_and_only_from_here() {
        let own = OwnNode {
            name: "server".into(),
            password: Password::new("s3cret"),
            address: Some("192.0.2.100".parse().unwrap()),
        };
        let (_sender, core) = Core::pending();
        let passwords = NodePasswords::new(core, Some(own));
        let ask = async |caller: Caller, name: &str, password: &str, from: &str| {
            passwords.admit(&caller, &claim(name, password), from.parse().unwrap()).await
        };
        for from in ["127.0.0.1", "::1", "192.0.2.100", "::ffff:192.0.2.100"] {
            assert_eq!(ask(agent(), "server", "s3cret", from).await, Ok(()), "{from}");
        }
        assert_eq!(ask(node("server"), "server", "s3cret", "127.0.0.1").await, Ok(()));
        let not_ready = Err(Status::unavailable("runtime core not ready"));
        assert_eq!(ask(agent(), "server", "s3cret", "192.0.2.7").await, not_ready);
        assert_eq!(ask(agent(), "edge-1", "s3cret", "127.0.0.1").await, not_ready);
        let mismatch = NodePasswordError::Mismatch { node: "server".into() };
        assert_eq!(ask(agent(), "server", "wrong", "127.0.0.1").await, Err(Status::forbidden(mismatch.to_string())));
    }

    #[tokio::test]
    async fn a_node_has_no_other_nodes_name() {
        let (_sender, core) = Core::pending();
        let passwords = NodePasswords::new(core, None);
        let refused = passwords.admit(&node("edge-1"), &claim("edge-2", "s3cret"), [127, 0, 0, 1].into()).await;
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
