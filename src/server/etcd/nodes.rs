//! Members and Nodes: a node says which member is its server's, and takes it along when it is deleted.
//!
//! Names are k3s' (`pkg/etcd/member_controller.go`): label, annotations and finalizer, so that either program does the other's work.
//!
//! ```text
//! a server's own Node ──► label, annotations, finalizer
//! deleted, or annotated remove=true ──► another server removes the member ──► the finalizer goes, or removed-node-name tells
//! ```

use std::sync::Arc;

use futures_util::stream;
use k3s_controllers::{Context, Controller, reconcile_each};
use k3s_supervise::{StatusLine, TaskError};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::{Map, Value, json};

use super::membership::Membership;

const ROLE: &str = "node-role.kubernetes.io/etcd";
const CONTROL_PLANE_ROLE: &str = "node-role.kubernetes.io/control-plane";
const MEMBER: &str = "etcd.k3s.cattle.io/node-name";
const ADDRESS: &str = "etcd.k3s.cattle.io/node-address";
const REMOVE: &str = "etcd.k3s.cattle.io/remove";
const REMOVED: &str = "etcd.k3s.cattle.io/removed-node-name";
const FINALIZER: &str = "wrangler.cattle.io/managed-etcd-controller";

/// Keeps members and Nodes together.
pub(crate) struct EtcdNodes {
    pub(crate) membership: Arc<Membership>,
    /// The node that this server also is.
    pub(crate) own_node: Option<String>,
    /// Whether this server runs kube-apiserver: if not, its node has no part in the control plane, although it may have had.
    pub(crate) has_kube_apiserver: bool,
}

/// This server's member, for its own node.
#[derive(Debug, Clone, Copy)]
struct Own<'a> {
    member: &'a str,
    address: &'a str,
    has_kube_apiserver: bool,
}

/// What has to be done about a node.
#[derive(Debug, PartialEq)]
enum Work {
    /// Nothing.
    Nothing,
    /// It has to say which member is its server's.
    Introduce(Value),
    /// The member goes, then this changes.
    Remove { member: String, patch: Value },
    /// It goes without its member.
    Release(Value),
    /// Its member is this server's, which the others remove; where there are none, it goes without it.
    ReleaseIfAlone(Value),
}

impl Controller for EtcdNodes {
    const NAME: &'static str = "etcd-nodes";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let (membership, own_node) = (self.membership.clone(), self.own_node.clone());
        let has_kube_apiserver = self.has_kube_apiserver;
        let (nodes, status) = (Api::<Node>::all(context.client), context.status.clone());
        let reconcile = move |node: Arc<Node>| {
            let (membership, own_node, nodes, status) =
                (membership.clone(), own_node.clone(), nodes.clone(), status.clone());
            async move {
                let own = (own_node.as_ref() == Some(&node.name_any()))
                    .then(|| (membership.member.name.clone(), membership.member.address.to_string()));
                let own = own.as_ref().map(|(member, address)| Own { member, address, has_kube_apiserver });
                reconcile(&membership, own, &nodes, &node, &status).await
            }
        };
        let also = None::<stream::Pending<ObjectRef<Node>>>;
        reconcile_each(&context.view.nodes(), also, context.status, reconcile).await;
        Ok(())
    }
}

async fn reconcile(
    membership: &Membership,
    own: Option<Own<'_>>,
    nodes: &Api<Node>,
    node: &Node,
    status: &StatusLine,
) -> kube::Result<Action> {
    let name = node.name_any();
    let patch = match Work::of(node, own) {
        Work::Nothing => return Ok(Action::await_change()),
        Work::Introduce(patch) | Work::Release(patch) => patch,
        Work::ReleaseIfAlone(patch) if membership.known_members().await.len() == 1 => patch,
        Work::ReleaseIfAlone(_) => return Ok(Action::await_change()),
        Work::Remove { member, patch } => {
            if let Err(error) = membership.remove(&member).await {
                status.problem(&name, format!("its etcd member cannot be removed: {error}"));
                return Ok(Action::requeue(std::time::Duration::from_secs(5)));
            }
            status.solved(&name);
            patch
        }
    };
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    nodes.patch(&name, &params, &Patch::Merge(patch)).await?;
    Ok(Action::await_change())
}

impl Work {
    /// `own` is this server's member, where the node is this server's.
    fn of(node: &Node, own: Option<Own<'_>>) -> Self {
        let annotation = |key| node.annotations().get(key).map(String::as_str);
        let is_kept = node.finalizers().iter().any(|name| name == FINALIZER);
        let without_finalizer = || {
            let kept: Vec<_> = node.finalizers().iter().filter(|name| *name != FINALIZER).collect();
            json!({"finalizers": kept})
        };
        let patch = |metadata: Value| {
            let mut patch = json!({"metadata": metadata});
            patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
            patch
        };
        let member = annotation(MEMBER).filter(|member| !member.is_empty());
        match (node.metadata.deletion_timestamp.is_some(), own) {
            (true, _) if !is_kept => Self::Nothing,
            (true, Some(_)) => Self::ReleaseIfAlone(patch(without_finalizer())),
            (true, None) => match member {
                Some(member) => Self::Remove { member: member.to_owned(), patch: patch(without_finalizer()) },
                None => Self::Release(patch(without_finalizer())),
            },
            (false, Some(own)) => Self::introduce(node, own, patch),
            (false, None) => match member {
                Some(member) if annotation(REMOVE) == Some("true") && annotation(REMOVED) != Some(member) => {
                    let metadata = json!({"annotations": {REMOVED: member}});
                    Self::Remove { member: member.to_owned(), patch: patch(metadata) }
                }
                _ => Self::Nothing,
            },
        }
    }

    fn introduce(node: &Node, own: Own<'_>, patch: impl Fn(Value) -> Value) -> Self {
        let Own { member, address, has_kube_apiserver } = own;
        let (mut metadata, mut labels) = (Map::new(), Map::new());
        if node.labels().get(ROLE).map(String::as_str) != Some("true") {
            labels.insert(ROLE.into(), json!("true"));
        }
        if !has_kube_apiserver && node.labels().contains_key(CONTROL_PLANE_ROLE) {
            labels.insert(CONTROL_PLANE_ROLE.into(), Value::Null);
        }
        if !labels.is_empty() {
            metadata.insert("labels".into(), Value::Object(labels));
        }
        let missing: Map<String, Value> = [(MEMBER, member), (ADDRESS, address)]
            .into_iter()
            .filter(|(key, value)| node.annotations().get(*key).map(String::as_str) != Some(value))
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect();
        if !missing.is_empty() {
            metadata.insert("annotations".into(), Value::Object(missing));
        }
        if !node.finalizers().iter().any(|name| name == FINALIZER) {
            let finalizers: Vec<_> = node.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
            metadata.insert("finalizers".into(), json!(finalizers));
        }
        if metadata.is_empty() { Self::Nothing } else { Self::Introduce(patch(Value::Object(metadata))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Option<Own<'_>> = Some(Own { member: "one-1", address: "10.0.0.1", has_kube_apiserver: true });

    fn node(metadata: Value) -> Node {
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_servers_own_node_says_which_member_it_has() {
        let new = node(json!({"name": "one", "resourceVersion": "7", "finalizers": ["other"]}));
        let Work::Introduce(patch) = Work::of(&new, OWN) else { panic!("it has said nothing yet") };
        assert_eq!(
            patch,
            json!({"metadata": {
                "resourceVersion": "7", "labels": {ROLE: "true"}, "annotations": {MEMBER: "one-1", ADDRESS: "10.0.0.1"},
                "finalizers": ["other", FINALIZER],
            }})
        );
        assert_eq!(Work::of(&new, None), Work::Nothing, "an agent's");
        let known = node(json!({
            "name": "one", "labels": {ROLE: "true"}, "annotations": {MEMBER: "one-1", ADDRESS: "10.0.0.1"}, "finalizers": [FINALIZER],
        }));
        assert_eq!(Work::of(&known, OWN), Work::Nothing);
    }

    #[test]
    fn the_node_of_a_server_without_kube_apiserver_has_no_part_in_the_control_plane() {
        let own = OWN.map(|own| Own { has_kube_apiserver: false, ..own });
        let before = |labels: Value| {
            node(json!({
                "name": "one", "resourceVersion": "7", "labels": labels, "finalizers": [FINALIZER],
                "annotations": {MEMBER: "one-1", ADDRESS: "10.0.0.1"},
            }))
        };
        let full = before(json!({ROLE: "true", CONTROL_PLANE_ROLE: "true"}));
        let patch = json!({"metadata": {"resourceVersion": "7", "labels": {CONTROL_PLANE_ROLE: null}}});
        assert_eq!(Work::of(&full, own), Work::Introduce(patch));
        assert_eq!(Work::of(&full, OWN), Work::Nothing);
        assert_eq!(Work::of(&before(json!({ROLE: "true"})), own), Work::Nothing);
    }

    #[test]
    fn a_deleted_node_takes_its_member_along() {
        let deleted = |annotations: Value| {
            node(json!({
                "name": "two", "resourceVersion": "7", "deletionTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["other", FINALIZER],
                "annotations": annotations,
            }))
        };
        let patch = json!({"metadata": {"resourceVersion": "7", "finalizers": ["other"]}});
        let with_member = deleted(json!({MEMBER: "two-2"}));
        assert_eq!(Work::of(&with_member, None), Work::Remove { member: "two-2".into(), patch: patch.clone() });
        assert_eq!(Work::of(&with_member, OWN), Work::ReleaseIfAlone(patch.clone()), "another server removes it");
        assert_eq!(Work::of(&deleted(json!({})), None), Work::Release(patch), "it never had one");
    }

    #[test]
    fn an_annotation_removes_a_member_once() {
        let annotated = |removed: &str| {
            node(
                json!({"name": "two", "resourceVersion": "7", "annotations": {MEMBER: "two-2", REMOVE: "true", REMOVED: removed}}),
            )
        };
        let patch = json!({"metadata": {"resourceVersion": "7", "annotations": {REMOVED: "two-2"}}});
        assert_eq!(Work::of(&annotated("two-1"), None), Work::Remove { member: "two-2".into(), patch });
        assert_eq!(Work::of(&annotated("two-2"), None), Work::Nothing);
    }
}
