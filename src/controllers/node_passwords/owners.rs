//! Whose each Secret is: a node's, with which it goes, or nobody's, and then not for long.

use std::{
    collections::BTreeMap,
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{Node, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{ObjectMeta, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::select;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::secret::{NAMESPACE, SUFFIX, TYPE};
use crate::backoff::{Backoff, Failure, log_broken_watch};

/// What they hold is no business of ours.
type Secrets = Api<PartialObjectMeta<Secret>>;

/// A node registers within minutes of its join. Whoever has not by then is not coming, as in k3s.
const ORPHAN: Duration = Duration::from_secs(600);

/// Gives each node's password to its node and deletes those that no node came for, until `shutdown`. The client needs to list, watch,
/// patch and delete Secrets in kube-system, and to list and watch nodes.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let secrets: Secrets = Api::namespaced(client.clone(), NAMESPACE);
    let typed = watcher::Config::default().fields(&format!("type={TYPE}"));
    let mut secret_events = pin!(watcher(secrets.clone(), typed).backoff(Backoff::default()));
    let nodes: Api<PartialObjectMeta<Node>> = Api::all(client);
    let mut node_events = pin!(watcher(nodes, watcher::Config::default()).backoff(Backoff::default()));
    let mut known = Known::default();
    let mut backoff = Backoff::default();
    let mut wait = None;
    loop {
        select! {
            () = shutdown.cancelled() => return,
            Some(event) = secret_events.next() => match event {
                Ok(event) => known.secrets.follow(event),
                Err(error) => { log_broken_watch("node passwords", &error); continue }
            },
            Some(event) = node_events.next() => match event {
                Ok(event) => known.nodes.follow(event),
                Err(error) => { log_broken_watch("nodes", &error); continue }
            },
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
        let Some(plan) = known.plan(SystemTime::now()) else { continue };
        wait = plan.next;
        for (name, change) in plan.changes {
            match change.make(&secrets, &name).await {
                Ok(()) => {
                    backoff = Backoff::default();
                    if matches!(change, Change::Delete { .. }) {
                        // Its watch says the same soon.
                        known.secrets.objects.remove(&name);
                    }
                }
                Err(error) => match Failure::of(&error) {
                    // The watch brings what it has become.
                    Failure::Outdated => {}
                    failure => {
                        if failure == Failure::Refused {
                            warn!(secret = name, %error, "The API refuses a change to the Secret of a node's password.");
                        }
                        wait = backoff.next().into_iter().chain(wait).min();
                    }
                },
            }
        }
    }
}

/// What both watches have told.
#[derive(Debug, Default)]
struct Known {
    nodes: Objects,
    secrets: Objects,
}

/// The objects of one watch by name, and whether all of them have been listed.
#[derive(Debug, Default)]
struct Objects {
    objects: BTreeMap<String, ObjectMeta>,
    listed: bool,
    listing: BTreeMap<String, ObjectMeta>,
}

/// What is to be done now, and after how long there may be more.
#[derive(Debug, Default)]
struct Plan {
    changes: Vec<(String, Change)>,
    next: Option<Duration>,
}

#[derive(Debug, PartialEq)]
enum Change {
    /// The node has come: the Secret is its.
    Own { node: String, owners: Vec<OwnerReference>, version: Option<String> },
    /// No node has come.
    Delete { uid: Option<String> },
}

impl Objects {
    fn follow<K>(&mut self, event: Event<PartialObjectMeta<K>>) {
        match event {
            Event::Apply(object) => self.objects.extend([named(object)]),
            Event::Delete(object) => drop(self.objects.remove(&named(object).0)),
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => self.listing.extend([named(object)]),
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.listing);
                self.listed = true;
            }
        }
    }
}

/// By its name, without what most of a node's metadata is.
fn named<K>(object: PartialObjectMeta<K>) -> (String, ObjectMeta) {
    let metadata = ObjectMeta { labels: None, annotations: None, managed_fields: None, ..object.metadata };
    (metadata.name.clone().unwrap_or_default(), metadata)
}

impl Known {
    /// `None` until both lists are complete: a node that is not known yet is not gone.
    fn plan(&self, now: SystemTime) -> Option<Plan> {
        if !self.nodes.listed || !self.secrets.listed {
            return None;
        }
        let mut plan = Plan::default();
        for (name, secret) in &self.secrets.objects {
            let Some(node) = name.strip_suffix(SUFFIX) else { continue };
            let Some(found) = self.nodes.objects.get(node) else {
                match orphaned_for(secret, now) {
                    Some(age) if age >= ORPHAN => {
                        plan.changes.push((name.clone(), Change::Delete { uid: secret.uid.clone() }));
                    }
                    age => {
                        let left = ORPHAN - age.unwrap_or_default();
                        plan.next = plan.next.into_iter().chain([left]).min();
                    }
                }
                continue;
            };
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.to_owned(),
                uid: found.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            };
            let mut owners = secret.owner_references.clone().unwrap_or_default();
            if !owners.contains(&owner) {
                owners.push(owner);
                let version = secret.resource_version.clone();
                plan.changes.push((name.clone(), Change::Own { node: node.to_owned(), owners, version }));
            }
        }
        Some(plan)
    }
}

/// How long ago it was made; `None` if that is in the future, or not known.
fn orphaned_for(secret: &ObjectMeta, now: SystemTime) -> Option<Duration> {
    let made = u64::try_from(secret.creation_timestamp.as_ref()?.0.as_second()).ok()?;
    now.duration_since(UNIX_EPOCH + Duration::from_secs(made)).ok()
}

impl Change {
    async fn make(&self, secrets: &Secrets, name: &str) -> kube::Result<()> {
        match self {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(list: serde_json::Value) -> Objects {
        let objects: Vec<ObjectMeta> = serde_json::from_value(list).unwrap();
        let objects = objects.into_iter().map(|object| (object.name.clone().unwrap(), object)).collect();
        Objects { objects, listed: true, ..Objects::default() }
    }

    /// 2026-01-01T00:00:00Z, and so many seconds.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
    }

    #[test]
    fn a_node_that_has_come_owns_its_password() {
        let secret = json!([{
            "name": "edge-1.node-password.k3s", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
        }]);
        let node = json!([{"name": "edge-1", "uid": "u1"}]);
        let mut known = Known { nodes: objects(node), secrets: objects(secret) };
        let plan = known.plan(at(5)).unwrap();
        let [(name, Change::Own { owners, version, .. })] = &plan.changes[..] else { panic!("{plan:?}") };
        assert_eq!((name.as_str(), version.as_deref()), ("edge-1.node-password.k3s", Some("7")));
        assert_eq!(
            serde_json::to_value(owners).unwrap(),
            json!([{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "u1"}])
        );

        known.secrets.objects.get_mut(name).unwrap().owner_references = Some(owners.clone());
        let plan = known.plan(at(9999)).unwrap();
        assert!(plan.changes.is_empty() && plan.next.is_none(), "idle: {plan:?}");
    }

    #[test]
    fn a_password_that_no_node_came_for_goes_after_ten_minutes() {
        let secret = json!([
            {"name": "edge-1.node-password.k3s", "uid": "s1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            {"name": "of-somebody-else", "creationTimestamp": "2020-01-01T00:00:00Z"},
        ]);
        let known = Known { nodes: objects(json!([])), secrets: objects(secret) };
        let plan = known.plan(at(240)).unwrap();
        assert!(plan.changes.is_empty());
        assert_eq!(plan.next, Some(Duration::from_secs(360)));
        let plan = known.plan(at(600)).unwrap();
        assert_eq!(plan.changes, [("edge-1.node-password.k3s".into(), Change::Delete { uid: Some("s1".into()) })]);
        assert!(known.plan(at(0) - Duration::from_secs(99)).unwrap().changes.is_empty(), "the clock was set back");
    }

    #[test]
    fn nothing_happens_before_all_is_known() {
        let old = json!([{"name": "edge-1.node-password.k3s", "creationTimestamp": "2020-01-01T00:00:00Z"}]);
        let known = Known { nodes: Objects::default(), secrets: objects(old) };
        assert!(known.plan(at(0)).is_none());
    }
}
