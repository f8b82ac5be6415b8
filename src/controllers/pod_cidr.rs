//! The pod ranges that kube-controller-manager gave to a node.

use std::pin::pin;

use futures_util::StreamExt as _;
use ipnet::{AddrParseError, IpNet};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher::watch_object},
};

use crate::backoff::{Backoff, log_broken_watch};

/// A node's pod range is not one.
#[derive(Debug, thiserror::Error)]
#[error(
    "node {node} has the pod range {cidr:?}, which is not a network: delete the node's object, and it registers anew"
)]
pub struct PodCidrError {
    /// The node.
    pub node: String,
    /// What its object says.
    pub cidr: String,
    /// What is wrong with it.
    pub source: AddrParseError,
}

/// Waits until the node called `name` has its pod ranges, one per family, the primary first. Kubelet's own credentials suffice.
pub async fn wait_pod_cidr(client: Client, name: &str) -> Result<Vec<IpNet>, PodCidrError> {
    let mut events = pin!(watch_object(Api::<Node>::all(client), name).backoff(Backoff::default()));
    loop {
        match events.next().await {
            Some(Ok(Some(node))) => match pod_cidrs(&node)? {
                cidrs if cidrs.is_empty() => {}
                cidrs => return Ok(cidrs),
            },
            Some(Ok(None)) | None => {}
            Some(Err(error)) => log_broken_watch("this node", &error),
        }
    }
}

fn pod_cidrs(node: &Node) -> Result<Vec<IpNet>, PodCidrError> {
    let Some(spec) = &node.spec else { return Ok(Vec::new()) };
    let cidrs = spec.pod_cidrs.iter().flatten();
    // An object from before dual stack has the single field only.
    let cidrs = if spec.pod_cidrs.is_some() { cidrs.chain(&None) } else { cidrs.chain(&spec.pod_cidr) };
    let parsed = cidrs.map(|cidr| {
        cidr.parse().map_err(|source| PodCidrError {
            node: node.metadata.name.clone().unwrap_or_default(),
            cidr: cidr.clone(),
            source,
        })
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: serde_json::Value) -> Result<Vec<String>, PodCidrError> {
        let node = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap();
        Ok(pod_cidrs(&node)?.iter().map(IpNet::to_string).collect())
    }

    #[test]
    fn both_families_in_order() {
        let both = json!({"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24", "fd42::/64"]});
        assert_eq!(of(both).unwrap(), ["10.42.0.0/24", "fd42::/64"]);
        assert_eq!(of(json!({"podCIDR": "10.42.0.0/24"})).unwrap(), ["10.42.0.0/24"]);
        assert!(of(json!({})).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_network_says_so() {
        let error = of(json!({"podCIDR": "10.42.0.0"})).unwrap_err().to_string();
        assert!(error.starts_with("node a has the pod range \"10.42.0.0\""), "{error}");
    }
}
