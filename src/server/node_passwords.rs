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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k3s_controllers::{
    Context, Controller, NodePasswordError, ensure_node_password, node_exists, replace_node_password, tell_of_deferred,
};
use k3s_http::Status;
use k3s_identity::{NodeFiles, Password};
use k3s_supervise::TaskError;
use k3s_supervisor_api::NodeClaim;
use kube::Client;
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{admin_client::AdminClient, caller::Caller};

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
    admin_client: AdminClient,
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
    /// The files of a node whose password a power cut has emptied: the password is a new one, and takes the place of the cluster's.
    pub lost: Option<NodeFiles>,
}

impl NodePasswords {
    /// The server's `own` node never asks, since its certificates are made in its process. Nobody else has its name: here by its file,
    /// from other servers by its Secret.
    pub fn new(admin_client: AdminClient, own: Option<OwnNode>) -> Self {
        let deferred = own.iter().map(|own| (own.name.clone(), own.password.clone())).collect();
        Self {
            admin_client,
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
        let client = self.admin_client.client()?;
        let checked = async {
            let _turn = self.turns.acquire().await;
            self.check(&client, caller, claim).await
        };
        timeout(TIMEOUT, checked).await.unwrap_or_else(|_| Err(Status::unavailable("apiserver not ready")))
    }

    /// Makes the Secret of the server's own node. To be done before [`AdminClient`] is there: from then on others can ask for names. Where the
    /// API does not take it now, [`Self::check_deferred`] tries on.
    pub async fn remember_own(&self, client: &Client) {
        if let Some(own) = &self.own {
            let _ = timeout(TIMEOUT, self.store_password(client, &own.name, &own.password)).await;
        }
    }

    /// Checks what was put off, for as long as it is polled. A node that turns out to have another's name is told of, and stays, as in
    /// k3s.
    async fn check_deferred(&self, client: &Client) {
        let mut deferred = self.deferred.subscribe();
        while deferred.wait_for(|deferred| !deferred.is_empty()).await.is_ok() {
            let names = deferred.borrow_and_update().clone();
            let mut failed = false;
            for (name, password) in &names {
                failed |= !self.store_password(client, name, password).await;
            }
            if failed {
                sleep(AGAIN).await;
            }
        }
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
    async fn store_password(&self, client: &Client, name: &str, password: &Password) -> bool {
        let lost = self.own.as_ref().filter(|own| own.name == name).and_then(|own| own.lost.as_ref());
        let checked = match lost {
            Some(_) => replace_node_password(client, name, password).await,
            None => ensure_node_password(client, name, password).await,
        };
        match &checked {
            Ok(()) => {
                if let Some(Err(error)) = lost.map(|files| files.store_password(password)) {
                    warn!(node = name, %error, "The node's new password cannot be kept; the next start draws another one.");
                }
            }
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

/// Checks the passwords of nodes whose check was put off.
pub(crate) struct DeferredNodePasswords(pub(crate) Arc<NodePasswords>);

impl Controller for DeferredNodePasswords {
    const NAME: &'static str = "deferred-node-passwords";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        self.0.check_deferred(&context.client).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k3s_controllers::ClusterView;
    use serde_json::json;

    use super::*;
    use crate::admin_client::AdminClient;

    fn claim(name: &str, password: &str) -> NodeClaim {
        NodeClaim { name: name.parse().unwrap(), password: Password::new(password), ips: Vec::new() }
    }

    fn agent() -> Caller {
        Caller::new("node", &["k3s:agent".to_owned()])
    }

    fn node(name: &str) -> Caller {
        Caller::new(format!("system:node:{name}"), &["system:nodes".to_owned()])
    }

    fn passwords(admin_client: AdminClient) -> NodePasswords {
        NodePasswords::new(
            admin_client,
            Some(OwnNode { name: "server".into(), password: Password::new("s3cret"), lost: None }),
        )
    }

    #[tokio::test]
    async fn before_the_api_only_the_own_node_is_known() {
        let (_sender, admin_client) = AdminClient::pending();
        let passwords = passwords(admin_client);
        for caller in [agent(), node("server")] {
            assert_eq!(passwords.admit(&caller, &claim("server", "s3cret")).await, Ok(()));
        }
        let not_ready = Err(Status::unavailable("runtime core not ready"));
        assert_eq!(passwords.admit(&agent(), &claim("edge-1", "s3cret")).await, not_ready);
    }

    /// An API that keeps one Secret, whatever it is called.
    fn api_with_one_secret() -> Client {
        let kept = Arc::new(Mutex::new(None));
        let answer = move |request: http::Request<kube::client::Body>| {
            let kept = kept.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let mut kept = kept.lock().unwrap();
                match parts.method {
                    http::Method::POST if parts.uri.path().ends_with("/secrets") => *kept = Some(body),
                    http::Method::DELETE => drop(kept.take()),
                    _ => {}
                }
                let gone = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
                let (code, body) = match &*kept {
                    None if parts.method == http::Method::GET => (404, gone.to_string().into()),
                    None => (200, json!({"kind": "Status", "status": "Success"}).to_string().into()),
                    Some(secret) => (200, secret.clone()),
                };
                let response = http::Response::builder().status(code).body(kube::client::Body::from(body.to_vec()));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn a_password_that_a_power_cut_emptied_is_replaced_in_the_cluster_and_on_the_disk() {
        let etc = tempfile::tempdir().unwrap();
        let files = NodeFiles::new(etc.path());
        let api = api_with_one_secret();
        ensure_node_password(&api, "server", &Password::new("before")).await.unwrap();
        let of = |password: &str, lost| {
            let own = OwnNode { name: "server".into(), password: Password::new(password), lost };
            NodePasswords::new(AdminClient::pending().1, Some(own))
        };
        of("another", None).remember_own(&api).await;
        assert!(
            ensure_node_password(&api, "server", &Password::new("before")).await.is_ok(),
            "it may be another machine's"
        );
        of("after", Some(files.clone())).remember_own(&api).await;
        assert!(ensure_node_password(&api, "server", &Password::new("after")).await.is_ok());
        let stored = files.stored_password(&etc.path().join("legacy")).unwrap();
        assert_eq!(stored, Some(Password::new("after")));
    }

    #[tokio::test]
    async fn the_own_name_is_nobody_elses_before_its_secret_is_there() {
        let mismatch = NodePasswordError::Mismatch { node: "server".into() };
        let refused = Err(Status::forbidden(mismatch.to_string()));
        let (sender, admin_client) = AdminClient::pending();
        let passwords = passwords(admin_client);
        assert_eq!(passwords.admit(&agent(), &claim("server", "guess")).await, refused);
        sender.send(&ClusterView::of_server(api_with_one_secret()));
        assert_eq!(passwords.admit(&agent(), &claim("edge-1", "guess")).await, Ok(()), "whose name is free");
        assert_eq!(passwords.admit(&agent(), &claim("server", "guess")).await, refused);
    }

    #[tokio::test]
    async fn a_node_has_no_other_nodes_name() {
        let (_sender, admin_client) = AdminClient::pending();
        let passwords = NodePasswords::new(admin_client, None);
        let refused = passwords.admit(&node("edge-1"), &claim("edge-2", "s3cret")).await;
        assert_eq!(refused, Err(Status::bad_request("header node name does not match auth node name")));
    }

    #[tokio::test]
    async fn what_is_put_off_belongs_to_the_first_that_came() {
        let (_sender, admin_client) = AdminClient::pending();
        let passwords = NodePasswords::new(admin_client, None);
        assert_eq!(passwords.put_off(&claim("edge-1", "one")), Ok(()));
        assert_eq!(passwords.put_off(&claim("edge-1", "one")), Ok(()), "both certificates");
        assert!(passwords.put_off(&claim("edge-1", "two")).is_err());
        for count in 1..PUT_OFF {
            assert_eq!(passwords.put_off(&claim(&format!("flood-{count}"), "x")), Ok(()));
        }
        assert!(passwords.put_off(&claim("one-too-many", "x")).is_err());
    }
}
