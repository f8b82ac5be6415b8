//! The nodes of the cluster as the pod network has to know them, and what a node says of itself there.

use std::collections::BTreeMap;

use ipnet::{AddrParseError, IpNet};
use k3s_network::overlay::Member;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tracing::warn;

use crate::{ClusterView, Derived};

/// A node's pod range is not one.
#[derive(Debug, thiserror::Error)]
#[error(
    "node {node} has the pod range {cidr:?}, which is not a network: delete the node's object, and it registers anew"
)]
struct PodCidrError {
    node: String,
    cidr: String,
    source: AddrParseError,
}

impl ClusterView {
    /// All members, sorted by name. Of their annotations only those that `keep` takes are kept and looked at.
    pub fn members(&self, keep: fn(&str) -> bool) -> Derived<Vec<Member>> {
        self.nodes().derive(move |node| Some(member(node, keep)), |members| members.values().cloned().collect())
    }

    /// The pod ranges of the node called `name`; none until kube-controller-manager has given it some.
    pub fn pod_cidrs(&self, name: &str) -> Derived<Vec<IpNet>> {
        let name = name.to_owned();
        self.nodes().derive(
            // What is wrong with a range is told where members are read.
            move |node| (node.name_any() == name).then(|| pod_cidrs(node).unwrap_or_default()),
            |nodes| nodes.values().next().cloned().unwrap_or_default(),
        )
    }
}

/// Makes the node called `name` have these annotations; others stay. Kubelet's credentials suffice for its own node.
///
/// # Errors
/// The API does not answer, or has no such node.
pub async fn set_annotations(client: &Client, name: &str, annotations: &BTreeMap<&str, String>) -> kube::Result<()> {
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    Api::<Node>::all(client.clone()).patch_metadata(name, &params, &patch).await.map(drop)
}

fn member(node: &Node, keep: fn(&str) -> bool) -> Member {
    let pod_cidrs = pod_cidrs(node).unwrap_or_else(|error| {
        warn!(%error, "A node is left out of the pod network.");
        Vec::new()
    });
    let annotations = node.annotations().iter().filter(|(key, _)| keep(key));
    Member {
        name: node.name_any(),
        pod_cidrs,
        annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

fn pod_cidrs(node: &Node) -> Result<Vec<IpNet>, PodCidrError> {
    let Some(spec) = &node.spec else { return Ok(Vec::new()) };
    let cidrs = spec.pod_cidrs.iter().flatten();
    // An object from before dual stack has the single field only.
    let cidrs = if spec.pod_cidrs.is_some() { cidrs.chain(&None) } else { cidrs.chain(&spec.pod_cidr) };
    let parsed = cidrs
        .map(|cidr| cidr.parse().map_err(|source| PodCidrError { node: node.name_any(), cidr: cidr.clone(), source }));
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(spec: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap()
    }

    #[test]
    fn ranges_of_both_families_in_order() {
        let of = |spec| {
            let cidrs = pod_cidrs(&node(spec)).map_err(|error| error.to_string())?;
            Ok::<_, String>(cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>())
        };
        let both = json!({"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24", "fd42::/64"]});
        assert_eq!(of(both).unwrap(), ["10.42.0.0/24", "fd42::/64"]);
        assert_eq!(of(json!({"podCIDR": "10.42.0.0/24"})).unwrap(), ["10.42.0.0/24"]);
        assert!(of(json!({})).unwrap().is_empty());
        let error = of(json!({"podCIDR": "10.42.0.0"})).unwrap_err();
        assert!(error.starts_with("node a has the pod range \"10.42.0.0\""), "{error}");
    }

    #[test]
    fn only_the_annotations_that_were_asked_for_count() {
        let annotations = json!({"flannel/public-ip": "10.0.0.1", "other": "1"});
        let node = serde_json::from_value(json!({"metadata": {"name": "a", "annotations": annotations}})).unwrap();
        let member = member(&node, |key| key.starts_with("flannel/"));
        assert_eq!(member.annotations, BTreeMap::from([("flannel/public-ip".into(), "10.0.0.1".into())]));
    }
}
