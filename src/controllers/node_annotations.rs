//! The agent's part in its node's object: addresses, labels and arguments that kubelet does not write.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::ObjectMeta,
};
use serde_json::{Map, Value, json};
use tracing::{debug, info, warn};

use crate::{
    ClusterView,
    backoff::{self, Failure},
    egress::POD_EGRESS_LABEL,
};

/// k3s' annotation keys; lists are joined by commas.
pub(crate) mod key {
    pub(crate) const INTERNAL_IP: &str = "k3s.io/internal-ip";
    pub(crate) const EXTERNAL_IP: &str = "k3s.io/external-ip";
    pub(crate) const INTERNAL_DNS: &str = "k3s.io/internal-dns";
    pub(crate) const EXTERNAL_DNS: &str = "k3s.io/external-dns";
    pub(crate) const HOSTNAME: &str = "k3s.io/hostname";
    pub(super) const ARGS: &str = "k3s.io/node-args";
    pub(super) const ENV: &str = "k3s.io/node-env";
    pub(super) const CONFIG_HASH: &str = "k3s.io/node-config-hash";
}

/// What an agent knows of its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeMetadata {
    /// `--node-label`: kubelet sets them at registration only, here they are set at each start.
    pub labels: Vec<(String, String)>,
    /// Keys of labels that this process has set before, and that the configuration has no more.
    pub former_labels: Vec<String>,
    /// Whether the node's tunnel leads to pods, which a label tells servers (`--egress-selector-mode`).
    pub pod_egress: bool,
    /// Where the node is reached; `None` where a cloud provider's controller knows (`--disable-cloud-controller`).
    pub addresses: Option<NodeAddresses>,
    /// How the agent was started; `None` leaves what is there.
    pub arguments: Option<NodeArguments>,
}

/// A node's addresses and names, the primary first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// `--node-ip`, or what was found.
    pub internal_ips: Vec<IpAddr>,
    /// `--node-external-ip`
    pub external_ips: Vec<IpAddr>,
    /// `--node-internal-dns`
    pub internal_dns: Vec<String>,
    /// `--node-external-dns`
    pub external_dns: Vec<String>,
    /// The host's name.
    pub hostname: String,
}

/// How the agent was started, secrets masked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeArguments {
    /// A JSON list of arguments.
    pub args: String,
    /// A JSON object of `K3S_*` variables.
    pub env: String,
    /// A digest of both.
    pub hash: String,
}

/// Writes `metadata` to the node called `name` each time it registers, which is once unless someone deletes its object: then kubelet
/// makes a new one, which nobody else would initialise. What an administrator changes later stays, as in k3s.
///
/// Lives until dropped. `client` may be kubelet's own. Nothing is written where nothing differs.
pub async fn annotate(view: &ClusterView, client: Client, name: &str, metadata: &NodeMetadata) {
    let nodes: Api<Node> = Api::all(client);
    let own = name.to_owned();
    // Heartbeats are not looked at: a node that registers anew has another uid.
    let uid = move |node: &Node| node.uid().filter(|_| node.name_any() == own);
    let mut uids = view.nodes().derive(uid, |uids| uids.values().next().cloned());
    let mut written = None;
    loop {
        let uid = uids.changed().await;
        if uid.is_some() && uid != written && write(&nodes, name, metadata).await {
            written = uid;
        }
    }
}

/// Writes `metadata` to the node called `name`, however long the API takes; says whether that is settled, which it is not if the object
/// went.
async fn write(nodes: &Api<Node>, name: &str, metadata: &NodeMetadata) -> bool {
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    let mut backoff = backoff::of_api();
    loop {
        let attempt = async {
            let node = nodes.get_metadata(name).await?;
            match metadata.patch(&node.metadata).map(Patch::Merge) {
                Some(patch) => nodes.patch_metadata(name, &params, &patch).await.map(|_| true),
                None => Ok(false),
            }
        };
        match attempt.await {
            Ok(written) => {
                if written {
                    info!(node = name, "Wrote this node's addresses and labels.");
                }
                return true;
            }
            Err(error) => match Failure::of(&error) {
                Failure::Outdated => return false,
                Failure::Refused => {
                    warn!(
                        node = name, %error,
                        "The API refuses this node's labels or annotations, so pods may not be scheduled here: correct --node-label."
                    );
                    return true;
                }
                Failure::Passing => debug!(node = name, %error, "This node could not be annotated; trying again."),
            },
        }
        backoff.wait().await;
    }
}

impl NodeMetadata {
    /// The merge patch that makes `node` say this, if it does not.
    fn patch(&self, node: &ObjectMeta) -> Option<Value> {
        let labels = self.labels.iter().map(|(key, value)| (key.as_str(), Some(value.clone())));
        let former = self.former_labels.iter().map(|key| (key.as_str(), None));
        let pod_egress = (POD_EGRESS_LABEL, self.pod_egress.then(|| "true".to_owned()));
        let labels = differing(node.labels.as_ref(), labels.chain(former).chain([pod_egress]));
        let annotations = differing(node.annotations.as_ref(), self.annotations());
        (!labels.is_empty() || !annotations.is_empty())
            .then(|| json!({"metadata": {"labels": labels, "annotations": annotations}}))
    }

    /// `None` for those that are not to be there.
    fn annotations(&self) -> impl Iterator<Item = (&'static str, Option<String>)> {
        let addresses = self.addresses.iter().flat_map(|addresses| {
            [
                (key::INTERNAL_IP, joined(&addresses.internal_ips)),
                (key::EXTERNAL_IP, joined(&addresses.external_ips)),
                (key::INTERNAL_DNS, joined(&addresses.internal_dns)),
                (key::EXTERNAL_DNS, joined(&addresses.external_dns)),
                (key::HOSTNAME, Some(addresses.hostname.clone())),
            ]
        });
        let arguments = self.arguments.iter().flat_map(|arguments| {
            [
                (key::ARGS, Some(arguments.args.clone())),
                (key::ENV, Some(arguments.env.clone())),
                (key::CONFIG_HASH, Some(arguments.hash.clone())),
            ]
        });
        addresses.chain(arguments)
    }
}

fn differing<'a>(
    present: Option<&BTreeMap<String, String>>,
    wanted: impl Iterator<Item = (&'a str, Option<String>)>,
) -> Map<String, Value> {
    let differing = wanted.filter(|(key, wanted)| present.and_then(|present| present.get(*key)) != wanted.as_ref());
    differing.map(|(key, wanted)| (key.to_owned(), wanted.map_or(Value::Null, Value::String))).collect()
}

fn joined<T: ToString>(list: &[T]) -> Option<String> {
    (!list.is_empty()).then(|| list.iter().map(T::to_string).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> NodeMetadata {
        NodeMetadata {
            labels: vec![("disk".into(), "ssd".into()), ("empty".into(), String::new())],
            former_labels: Vec::new(),
            pod_egress: false,
            addresses: Some(NodeAddresses {
                internal_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                hostname: "host".into(),
                ..NodeAddresses::default()
            }),
            arguments: None,
        }
    }

    fn node(metadata: Value) -> ObjectMeta {
        serde_json::from_value(metadata).unwrap()
    }

    #[test]
    fn a_fresh_node_gets_everything() {
        assert_eq!(
            metadata().patch(&node(json!({"name": "a"}))).unwrap(),
            json!({"metadata": {
                "labels": {"disk": "ssd", "empty": ""},
                "annotations": {"k3s.io/internal-ip": "10.0.0.1,fd00::1", "k3s.io/hostname": "host"},
            }})
        );
    }

    #[test]
    fn only_what_differs_is_written_and_a_former_address_goes() {
        let node = node(json!({
            "name": "a",
            "labels": {"disk": "ssd", "empty": "", "other": "stays"},
            "annotations": {
                "k3s.io/internal-ip": "10.0.0.1,fd00::1", "k3s.io/hostname": "host", "k3s.io/external-ip": "192.0.2.1",
            },
        }));
        assert_eq!(
            metadata().patch(&node).unwrap(),
            json!({"metadata": {"labels": {}, "annotations": {"k3s.io/external-ip": null}}})
        );
    }

    #[test]
    fn a_label_that_left_the_configuration_goes() {
        let metadata = NodeMetadata { former_labels: vec!["site".into(), "gone".into()], ..NodeMetadata::default() };
        let node = node(json!({"name": "a", "labels": {"site": "one", "other": "stays"}}));
        assert_eq!(metadata.patch(&node).unwrap(), json!({"metadata": {"labels": {"site": null}, "annotations": {}}}));
    }

    #[test]
    fn the_label_of_tunnels_that_lead_to_pods_comes_and_goes() {
        let labelled = node(json!({"name": "a", "labels": {"egress.k3s.io/cluster": "true"}}));
        let (leads, ends) = (NodeMetadata { pod_egress: true, ..NodeMetadata::default() }, NodeMetadata::default());
        assert_eq!(leads.patch(&labelled), None);
        assert_eq!(ends.patch(&labelled).unwrap()["metadata"]["labels"], json!({"egress.k3s.io/cluster": null}));
        let label = leads.patch(&node(json!({"name": "a"}))).unwrap();
        assert_eq!(label["metadata"]["labels"], json!({"egress.k3s.io/cluster": "true"}));
    }

    #[test]
    fn nothing_is_written_where_nothing_differs() {
        let node = node(json!({
            "name": "a",
            "labels": {"disk": "ssd", "empty": ""},
            "annotations": {"k3s.io/internal-ip": "10.0.0.1,fd00::1", "k3s.io/hostname": "host"},
        }));
        assert_eq!(metadata().patch(&node), None);
    }
}
