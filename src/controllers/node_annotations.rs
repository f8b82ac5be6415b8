//! The agent's part in its node's object: addresses, labels and arguments that kubelet does not write.

use std::{collections::BTreeMap, net::IpAddr, pin::pin};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use serde_json::{Map, Value, json};
use tracing::{debug, info, warn};

use crate::backoff::{Backoff, Failure, log_broken_watch};

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

/// Waits until the node called `name` is registered and writes `metadata` to it; nothing is written where nothing differs.
///
/// Kubelet's own credentials suffice. It is tried until the API takes it or refuses the content for good (a label that is not
/// allowed): that is logged and gives up, as kubelet itself runs on.
pub async fn annotate(client: Client, name: &str, metadata: &NodeMetadata) {
    let nodes: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
    let objects: Api<Node> = Api::all(client);
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    let mut backoff = Backoff::default();
    loop {
        let node = registered(nodes.clone(), name).await;
        let Some(patch) = metadata.patch(&node) else { return };
        match objects.patch_metadata(name, &params, &Patch::Merge(patch)).await {
            Ok(_) => return info!(node = name, "Wrote this node's addresses and labels."),
            Err(error) if Failure::of(&error) == Failure::Refused => {
                return warn!(
                    node = name, %error,
                    "The API refuses this node's labels or annotations, so pods may not be scheduled here: correct --node-label."
                );
            }
            Err(error) => debug!(node = name, %error, "This node could not be annotated; trying again."),
        }
        backoff.wait().await;
    }
}

/// The node's metadata, as soon as it is there.
async fn registered(nodes: Api<PartialObjectMeta<Node>>, name: &str) -> PartialObjectMeta<Node> {
    let mut events = pin!(watch_object(nodes, name).backoff(Backoff::default()));
    loop {
        match events.next().await {
            Some(Ok(Some(node))) => return node,
            Some(Ok(None)) | None => {}
            Some(Err(error)) => log_broken_watch("this node", &error),
        }
    }
}

impl NodeMetadata {
    /// The merge patch that makes `node` say this, if it does not.
    fn patch(&self, node: &PartialObjectMeta<Node>) -> Option<Value> {
        let labels = differing(node.labels(), self.labels.iter().map(|(key, value)| (&**key, value.clone())));
        let annotations = differing(node.annotations(), self.annotations());
        (!labels.is_empty() || !annotations.is_empty())
            .then(|| json!({"metadata": {"labels": labels, "annotations": annotations}}))
    }

    /// An empty value stands for one that is to go.
    fn annotations(&self) -> impl Iterator<Item = (&'static str, String)> {
        let addresses = self.addresses.iter().flat_map(|addresses| {
            [
                (key::INTERNAL_IP, joined(&addresses.internal_ips)),
                (key::EXTERNAL_IP, joined(&addresses.external_ips)),
                (key::INTERNAL_DNS, joined(&addresses.internal_dns)),
                (key::EXTERNAL_DNS, joined(&addresses.external_dns)),
                (key::HOSTNAME, addresses.hostname.clone()),
            ]
        });
        let arguments = self.arguments.iter().flat_map(|arguments| {
            [
                (key::ARGS, arguments.args.clone()),
                (key::ENV, arguments.env.clone()),
                (key::CONFIG_HASH, arguments.hash.clone()),
            ]
        });
        addresses.chain(arguments)
    }
}

fn differing<'a>(
    present: &BTreeMap<String, String>,
    wanted: impl Iterator<Item = (&'a str, String)>,
) -> Map<String, Value> {
    let mut changes = Map::new();
    for (key, value) in wanted {
        match present.get(key) {
            Some(present) if *present == value => {}
            None if value.is_empty() && key.starts_with("k3s.io/") => {}
            Some(_) if value.is_empty() && key.starts_with("k3s.io/") => {
                changes.insert(key.into(), Value::Null);
            }
            _ => {
                changes.insert(key.into(), value.into());
            }
        }
    }
    changes
}

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> NodeMetadata {
        NodeMetadata {
            labels: vec![("disk".into(), "ssd".into()), ("empty".into(), String::new())],
            addresses: Some(NodeAddresses {
                internal_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                hostname: "host".into(),
                ..NodeAddresses::default()
            }),
            arguments: None,
        }
    }

    fn node(metadata: Value) -> PartialObjectMeta<Node> {
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
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
    fn nothing_is_written_where_nothing_differs() {
        let node = node(json!({
            "name": "a",
            "labels": {"disk": "ssd", "empty": ""},
            "annotations": {"k3s.io/internal-ip": "10.0.0.1,fd00::1", "k3s.io/hostname": "host"},
        }));
        assert_eq!(metadata().patch(&node), None);
    }
}
