//! What servers have to know of nodes and pods to reach them: the content of [`Egress`], kept true by watches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use k3s_supervise::TaskError;
use k3s_tunnel::{Egress, Node};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod as PodObject};
use kube::ResourceExt as _;
use tokio::sync::watch;

use crate::{Context, Controller};

/// The label by which a node says that its tunnel leads to pods (k3s: modes `pod` and `cluster`).
pub(crate) const POD_EGRESS_LABEL: &str = "egress.k3s.io/cluster";

/// Tells the front where nodes are, and pods.
#[derive(Debug)]
pub struct EgressController {
    /// Where it tells.
    pub egress: watch::Sender<Egress>,
    /// Whether pods are reached through tunnels too (`--egress-selector-mode`).
    pub pods: bool,
}

impl Controller for EgressController {
    const NAME: &'static str = "egress";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let collect = |nodes: &BTreeMap<String, Node>| nodes.clone().into_iter().collect::<HashMap<_, _>>();
        let mut nodes = context.view.nodes().derive(|object| Some(node(object)), collect);
        let mut pods = self.pods.then(|| context.view.pods().derive(pod, by_address));
        loop {
            let pods = async {
                match &mut pods {
                    Some(pods) => pods.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                nodes = nodes.changed() => self.egress.send_modify(|egress| egress.nodes = nodes),
                pods = pods => self.egress.send_modify(|egress| egress.pods = pods),
            }
        }
    }
}

/// Where a pod runs, and its addresses.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    node: String,
    addresses: BTreeSet<IpAddr>,
}

fn node(object: &NodeObject) -> Node {
    let status = object.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |kinds: &'static [&str]| {
        addresses.iter().filter(|address| kinds.contains(&address.type_.as_str())).map(|address| &address.address)
    };
    Node {
        addresses: of(&["InternalIP", "ExternalIP"]).filter_map(|address| address.parse().ok()).collect(),
        hostnames: of(&["Hostname"]).cloned().collect(),
        kubelet_port: kubelet_port(object),
        pod_egress: object.labels().contains_key(POD_EGRESS_LABEL),
    }
}

/// `None` for a node whose kubelet has not said it.
pub(crate) fn kubelet_port(object: &NodeObject) -> Option<u16> {
    let endpoint = object.status.as_ref()?.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
    u16::try_from(endpoint.port).ok().filter(|port| *port != 0)
}

/// `None` for a pod that has no address of its own, or no longer.
fn pod(object: &PodObject) -> Option<Pod> {
    let (spec, status) = (object.spec.as_ref()?, object.status.as_ref()?);
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || spec.host_network == Some(true) {
        return None;
    }
    let addresses = status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok()).collect();
    Some(Pod { node: spec.node_name.clone()?, addresses })
}

fn by_address(pods: &BTreeMap<String, Pod>) -> HashMap<IpAddr, String> {
    pods.values().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.node.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node_object(address: &str) -> NodeObject {
        serde_json::from_value(json!({
            "metadata": {"name": "worker", "labels": {POD_EGRESS_LABEL: "true"}},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": address},
                    {"type": "ExternalIP", "address": "198.51.100.7"},
                    {"type": "Hostname", "address": "worker.lan"},
                    {"type": "InternalDNS", "address": "worker.internal"},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            },
        }))
        .unwrap()
    }

    fn pod_object(name: &str, phase: &str, address: &str) -> PodObject {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"nodeName": "worker", "containers": []},
            "status": {"phase": phase, "podIPs": [{"ip": address}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_known_by_its_addresses_names_and_port() {
        assert_eq!(
            node(&node_object("192.0.2.7")),
            Node {
                addresses: ["192.0.2.7".parse().unwrap(), "198.51.100.7".parse().unwrap()].into(),
                hostnames: ["worker.lan".to_owned()].into(),
                kubelet_port: Some(10250),
                pod_egress: true,
            }
        );
        let young = serde_json::from_value(json!({
            "metadata": {"name": "young"},
            "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}},
        }));
        assert_eq!(node(&young.unwrap()), Node::default());
    }

    #[test]
    fn an_address_belongs_to_the_pod_that_has_it_now() {
        assert_eq!(pod(&pod_object("old", "Succeeded", "10.42.1.9")), None);
        let pods = [("default/new".to_owned(), pod(&pod_object("new", "Running", "10.42.1.9")).unwrap())].into();
        assert_eq!(by_address(&pods), HashMap::from([("10.42.1.9".parse().unwrap(), "worker".to_owned())]));

        let mut on_the_host = pod_object("host", "Running", "192.0.2.7");
        on_the_host.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(pod(&on_the_host), None);
    }
}
