//! The pods of one node, as far as servers may reach them through its tunnel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Pod;

use crate::{ClusterView, Derived};

/// Where a node's pods are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnPods {
    /// The addresses of those that have their own.
    pub addresses: BTreeSet<IpAddr>,
    /// The TCP ports that containers on the host's network say they listen on.
    pub host_ports: BTreeSet<u16>,
}

impl ClusterView {
    /// Where the pods of the node called `node` are.
    pub fn pods_of(&self, node: &str) -> Derived<OwnPods> {
        let node = node.to_owned();
        self.pods().derive(
            move |pod| {
                reached(pod).filter(|_| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&node))
            },
            |pods: &BTreeMap<String, OwnPods>| pods.values().fold(OwnPods::default(), OwnPods::with),
        )
    }
}

impl OwnPods {
    fn with(mut self, pod: &Self) -> Self {
        self.addresses.extend(&pod.addresses);
        self.host_ports.extend(&pod.host_ports);
        self
    }
}

/// What is reached of one pod; `None` once it has ended.
fn reached(pod: &Pod) -> Option<OwnPods> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    Some(if spec.host_network == Some(true) {
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        let host_ports = tcp.filter_map(|port| u16::try_from(port.container_port).ok()).collect();
        OwnPods { host_ports, ..OwnPods::default() }
    } else {
        let addresses = status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok()).collect();
        OwnPods { addresses, ..OwnPods::default() }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value) -> Option<OwnPods> {
        reached(&serde_json::from_value(json!({"spec": spec, "status": status})).unwrap())
    }

    #[test]
    fn a_pod_is_reached_by_its_addresses_and_one_on_the_hosts_network_by_its_ports() {
        let ports = json!([{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]);
        let containers = json!([{"name": "a", "ports": ports}]);
        let status = json!({"phase": "Running", "podIPs": [{"ip": "10.42.1.7"}, {"ip": "fd42::7"}]});
        let own = pod(json!({"containers": containers}), status.clone()).unwrap();
        assert_eq!(own.addresses, ["10.42.1.7".parse().unwrap(), "fd42::7".parse().unwrap()].into());
        assert!(own.host_ports.is_empty());
        let on_host = pod(json!({"containers": containers, "hostNetwork": true}), status).unwrap();
        assert_eq!((on_host.addresses.len(), on_host.host_ports), (0, [80].into()));
        assert_eq!(pod(json!({"containers": containers}), json!({"phase": "Succeeded"})), None);
    }
}
