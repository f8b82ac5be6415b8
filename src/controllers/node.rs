//! The server's part in a node's object: what k3s' embedded cloud provider does, and the server's role label.
//!
//! ```text
//! registered by kubelet, tainted uninitialized
//!   └─ the agent annotates its addresses (`node_annotations.rs`)
//!        └─ here: status addresses, then provider id, instance type and the taint's removal
//!             └─ pods are scheduled
//! ```

use std::sync::Arc;

use futures_util::stream;
use k3s_supervise::TaskError;
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::{Map, Value, json};
use tracing::info;

use crate::{Context, Controller, node_annotations::key, queue::reconcile_each};

/// Put on a node by kubelet under `--cloud-provider=external`, taken off here.
pub const PROVIDER_TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";

const CONTROL_PLANE_ROLE: &str = "node-role.kubernetes.io/control-plane";
const INSTANCE_TYPE: &str = "k3s";
const INSTANCE_TYPE_LABELS: [&str; 2] = ["node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"];

/// What this server does for nodes.
#[derive(Debug, Clone)]
pub struct NodeController {
    /// Whether nodes are initialised here, rather than by a cloud provider's own controller (`--disable-cloud-controller`).
    pub initialises: bool,
    /// The node this server also is, which gets the control-plane role.
    pub own_node: Option<String>,
}

impl Controller for NodeController {
    const NAME: &'static str = "nodes";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let (this, nodes) = (self.clone(), Api::<Node>::all(context.client));
        let reconcile = move |node: Arc<Node>| {
            let (this, nodes) = (this.clone(), nodes.clone());
            async move {
                this.patch(&nodes, &node).await?;
                Ok(Action::await_change())
            }
        };
        let also = None::<stream::Pending<ObjectRef<Node>>>;
        reconcile_each(&context.view.nodes(), also, context.status, reconcile).await;
        Ok(())
    }
}

impl NodeController {
    /// What it has to do, if anything.
    pub fn new(initialises: bool, own_node: Option<String>) -> Option<Self> {
        (initialises || own_node.is_some()).then_some(Self { initialises, own_node })
    }

    /// Brings one node up to date. Nobody else's change is overwritten: both patches name the version they were made for.
    async fn patch(&self, nodes: &Api<Node>, node: &Node) -> kube::Result<()> {
        let name = node.name_any();
        let mut node = node.clone();
        let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
        // Addresses first: pods come once the taint is gone, and then they are needed.
        if let Some(patch) = self.status_patch(&node) {
            node = nodes.patch_status(&name, &params, &Patch::Merge(patch)).await?;
        }
        if let Some(patch) = self.object_patch(&node) {
            let initialises = patch["spec"].get("taints").is_some();
            nodes.patch(&name, &params, &Patch::Merge(patch)).await?;
            if initialises {
                info!(node = name, "Initialised a node.");
            }
        }
        Ok(())
    }

    /// The change that `node`'s status needs, if any.
    fn status_patch(&self, node: &Node) -> Option<Value> {
        let addresses = self.addresses(node)?;
        let present = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        (present != Some(&addresses)).then(|| {
            json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "status": {"addresses": addresses},
            })
        })
    }

    /// The change that the rest of `node` needs, if any.
    fn object_patch(&self, node: &Node) -> Option<Value> {
        let mut labels = Map::new();
        let mut spec = Map::new();
        let name = node.name_any();
        if self.own_node.as_deref() == Some(&*name) {
            want_label(&mut labels, node, CONTROL_PLANE_ROLE, "true");
        }
        if self.addresses(node).is_some() {
            for label in INSTANCE_TYPE_LABELS {
                if !node.labels().contains_key(label) {
                    want_label(&mut labels, node, label, INSTANCE_TYPE);
                }
            }
            let present = node.spec.as_ref();
            // Immutable once set.
            if present.is_none_or(|spec| spec.provider_id.as_deref().is_none_or(str::is_empty)) {
                spec.insert("providerID".into(), json!(format!("k3s://{name}")));
            }
            let taints = present.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
            let remaining: Vec<_> = taints.iter().filter(|taint| taint.key != PROVIDER_TAINT).collect();
            if remaining.len() < taints.len() {
                spec.insert("taints".into(), json!(remaining));
            }
        }
        (!labels.is_empty() || !spec.is_empty()).then(|| {
            json!({
                "metadata": {"resourceVersion": node.metadata.resource_version, "labels": labels},
                "spec": spec,
            })
        })
    }

    /// What the agent said of its addresses; `None` until it has, or where that is another's to know.
    fn addresses(&self, node: &Node) -> Option<Vec<NodeAddress>> {
        let said = |key: &str| {
            // Labels of the same names come from releases that knew no annotations yet.
            let said = node.annotations().get(key).or_else(|| node.labels().get(key));
            said.filter(|said| !said.is_empty())
        };
        if !self.initialises {
            return None;
        }
        said(key::INTERNAL_IP)?;
        let kinds = [
            ("InternalIP", key::INTERNAL_IP),
            ("ExternalIP", key::EXTERNAL_IP),
            ("InternalDNS", key::INTERNAL_DNS),
            ("ExternalDNS", key::EXTERNAL_DNS),
            ("Hostname", key::HOSTNAME),
        ];
        let addresses = kinds.into_iter().flat_map(|(kind, key)| {
            let addresses = said(key).into_iter().flat_map(|list| list.split(','));
            addresses.map(move |address| NodeAddress { type_: kind.into(), address: address.trim().into() })
        });
        Some(addresses.collect())
    }
}

fn want_label(labels: &mut Map<String, Value>, node: &Node, label: &str, value: &str) {
    if node.labels().get(label).map(String::as_str) != Some(value) {
        labels.insert(label.into(), json!(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(object: Value) -> Node {
        serde_json::from_value(object).unwrap()
    }

    fn controller() -> NodeController {
        NodeController { initialises: true, own_node: Some("server".into()) }
    }

    #[test]
    fn a_node_waits_for_its_agent() {
        let node = node(json!({
            "metadata": {"name": "agent", "resourceVersion": "1"},
            "spec": {"taints": [{"key": PROVIDER_TAINT, "value": "true", "effect": "NoSchedule"}]},
        }));
        assert_eq!(controller().status_patch(&node), None);
        assert_eq!(controller().object_patch(&node), None);
    }

    #[test]
    fn an_annotated_node_is_initialised() {
        let node = node(json!({
            "metadata": {
                "name": "server", "resourceVersion": "7",
                "annotations": {
                    "k3s.io/internal-ip": "10.0.0.1,fd00::1", "k3s.io/external-ip": "192.0.2.1", "k3s.io/hostname": "server.lan",
                },
            },
            "spec": {"taints": [
                {"key": PROVIDER_TAINT, "value": "true", "effect": "NoSchedule"},
                {"key": "own", "effect": "NoSchedule"},
            ]},
        }));
        assert_eq!(
            controller().status_patch(&node).unwrap(),
            json!({
                "metadata": {"resourceVersion": "7"},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": "10.0.0.1"},
                    {"type": "InternalIP", "address": "fd00::1"},
                    {"type": "ExternalIP", "address": "192.0.2.1"},
                    {"type": "Hostname", "address": "server.lan"},
                ]},
            })
        );
        assert_eq!(
            controller().object_patch(&node).unwrap(),
            json!({
                "metadata": {"resourceVersion": "7", "labels": {
                    "node-role.kubernetes.io/control-plane": "true",
                    "node.kubernetes.io/instance-type": "k3s",
                    "beta.kubernetes.io/instance-type": "k3s",
                }},
                "spec": {"providerID": "k3s://server", "taints": [{"key": "own", "effect": "NoSchedule"}]},
            })
        );
    }

    #[test]
    fn an_initialised_node_is_left_alone() {
        let node = node(json!({
            "metadata": {
                "name": "agent", "resourceVersion": "9",
                "annotations": {"k3s.io/internal-ip": "10.0.0.2"},
                "labels": {"node.kubernetes.io/instance-type": "edge", "beta.kubernetes.io/instance-type": "edge"},
            },
            "spec": {"providerID": "other://agent"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.2"}]},
        }));
        assert_eq!(controller().status_patch(&node), None);
        assert_eq!(controller().object_patch(&node), None);
    }

    #[test]
    fn under_another_cloud_provider_only_the_role_is_ours() {
        let controller = NodeController { initialises: false, ..controller() };
        let node = node(json!({
            "metadata": {"name": "server", "resourceVersion": "1", "annotations": {"k3s.io/internal-ip": "10.0.0.1"}},
        }));
        assert_eq!(controller.status_patch(&node), None);
        let patch = controller.object_patch(&node).unwrap();
        assert_eq!(patch["metadata"]["labels"], json!({"node-role.kubernetes.io/control-plane": "true"}));
        assert_eq!(patch["spec"], json!({}));
    }
}
