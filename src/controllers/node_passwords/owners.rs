//! Whose each Secret is: a node's, with which it goes, or nobody's, and then not for long.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt as _;
use k3s_supervise::TaskError;
use k8s_openapi::{
    api::core::v1::{Node, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{ObjectMeta, PartialObjectMeta},
    runtime::{controller::Action, reflector::ObjectRef, watcher::Config},
};
use serde_json::json;
use tracing::{info, warn};

use super::secret::{NAMESPACE, SUFFIX, TYPE, node_password_secret};
use crate::{Context, Controller, queue::reconcile_each};

/// What they hold is no business of ours.
type SecretMeta = PartialObjectMeta<Secret>;

/// A node registers within minutes of its join. Whoever has not by then is not coming, as in k3s.
const ORPHAN: Duration = Duration::from_secs(600);

/// Gives each node's password to its node, and deletes those that no node came for.
#[derive(Debug)]
pub struct NodePasswordOwners;

impl Controller for NodePasswordOwners {
    const NAME: &'static str = "node-passwords";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let typed = Config::default().fields(&format!("type={TYPE}"));
        let api = Api::<SecretMeta>::namespaced(context.client, NAMESPACE);
        let secrets = context.view.reflect("node passwords", api.clone(), typed, |_| {});
        let nodes = context.view.nodes();
        // A node that is not known yet is not gone.
        nodes.listed().await;
        let of_nodes = nodes.touched().map(|node| ObjectRef::new(&node_password_secret(&node.name)).within(NAMESPACE));
        let known = nodes.store();
        let reconcile = move |secret: Arc<SecretMeta>| {
            let (known, api) = (known.clone(), api.clone());
            async move {
                let name = secret.name_any();
                let Some(node) = name.strip_suffix(SUFFIX) else { return Ok(Action::await_change()) };
                let found = known.get(&ObjectRef::<Node>::new(node));
                match Change::of(&secret.metadata, node, found.as_deref(), SystemTime::now()) {
                    Change::None => Ok(Action::await_change()),
                    Change::Wait(left) => Ok(Action::requeue(left)),
                    change => {
                        change.make(&api, &name).await?;
                        Ok(Action::await_change())
                    }
                }
            }
        };
        reconcile_each(&secrets, Some(of_nodes), context.status, reconcile).await;
        Ok(())
    }
}

/// What is to be done about one Secret.
#[derive(Debug, PartialEq)]
enum Change {
    None,
    /// Its node may still come, for so long.
    Wait(Duration),
    /// The node has come: the Secret is its.
    Own {
        node: String,
        owners: Vec<OwnerReference>,
        version: Option<String>,
    },
    /// No node has come.
    Delete {
        uid: Option<String>,
    },
}

impl Change {
    fn of(secret: &ObjectMeta, name: &str, node: Option<&Node>, now: SystemTime) -> Self {
        let Some(node) = node else {
            return match orphaned_for(secret, now) {
                Some(age) if age >= ORPHAN => Self::Delete { uid: secret.uid.clone() },
                age => Self::Wait(ORPHAN - age.unwrap_or_default()),
            };
        };
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.to_owned(),
            uid: node.uid().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let mut owners = secret.owner_references.clone().unwrap_or_default();
        if owners.contains(&owner) {
            return Self::None;
        }
        owners.push(owner);
        Self::Own { node: name.to_owned(), owners, version: secret.resource_version.clone() }
    }

    async fn make(&self, secrets: &Api<SecretMeta>, name: &str) -> kube::Result<()> {
        match self {
            Self::None | Self::Wait(_) => {}
            Self::Own { node, owners, version } => {
                let patch = json!({"metadata": {"resourceVersion": version, "ownerReferences": owners}});
                secrets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                info!(node, secret = name, "The Secret of a node's password goes with its node from now on.");
            }
            Self::Delete { uid } => {
                let only_this = Preconditions { uid: uid.clone(), resource_version: None };
                secrets.delete(name, &DeleteParams::default().preconditions(only_this)).await?;
                warn!(secret = name, "Deleted the password of a node that joined and never registered.");
            }
        }
        Ok(())
    }
}

/// How long ago it was made; `None` if that is in the future, or not known.
fn orphaned_for(secret: &ObjectMeta, now: SystemTime) -> Option<Duration> {
    let made = u64::try_from(secret.creation_timestamp.as_ref()?.0.as_second()).ok()?;
    now.duration_since(UNIX_EPOCH + Duration::from_secs(made)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "edge-1.node-password.k3s";

    fn secret(metadata: serde_json::Value) -> ObjectMeta {
        let created = json!({"name": SECRET, "creationTimestamp": "2026-01-01T00:00:00Z"});
        let mut secret: ObjectMeta = serde_json::from_value(created).unwrap();
        let more: ObjectMeta = serde_json::from_value(metadata).unwrap();
        (secret.uid, secret.resource_version, secret.owner_references) =
            (more.uid, more.resource_version, more.owner_references);
        secret
    }

    /// 2026-01-01T00:00:00Z, and so many seconds.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
    }

    #[test]
    fn a_node_that_has_come_owns_its_password() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "edge-1", "uid": "u1"}})).unwrap();
        let change = Change::of(&secret(json!({"resourceVersion": "7"})), "edge-1", Some(&node), at(5));
        let Change::Own { owners, version, .. } = change else { panic!("{change:?}") };
        assert_eq!(version.as_deref(), Some("7"));
        let owners = serde_json::to_value(owners).unwrap();
        assert_eq!(owners, json!([{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "u1"}]));
        let owned = secret(json!({"ownerReferences": owners}));
        assert_eq!(Change::of(&owned, "edge-1", Some(&node), at(9999)), Change::None, "idle");
    }

    #[test]
    fn a_password_that_no_node_came_for_goes_after_ten_minutes() {
        let secret = secret(json!({"uid": "s1"}));
        let change = |now| Change::of(&secret, "edge-1", None, now);
        assert_eq!(change(at(240)), Change::Wait(Duration::from_secs(360)));
        assert_eq!(change(at(600)), Change::Delete { uid: Some("s1".into()) });
        assert_eq!(change(at(0) - Duration::from_secs(99)), Change::Wait(ORPHAN), "the clock was set back");
    }
}
