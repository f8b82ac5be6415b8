//! What policies need to know of a pod.

use std::net::IpAddr;

use k8s_openapi::{api::core::v1::Pod as Object, jiff::Timestamp};

use crate::{Labels, Protocol};

/// A pod that has, or is about to have, addresses of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Where it runs.
    pub node: String,
    /// What it is selected by.
    pub labels: Labels,
    /// Where it is reached, as far as the API knows.
    pub addresses: Vec<IpAddr>,
    /// The ports that policies may name.
    pub ports: Vec<NamedPort>,
    /// When it was made: of two pods that claim an address, it is the younger one's.
    pub created: Option<Timestamp>,
}

/// A container's port with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name, unique in the pod.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

impl Pod {
    /// `None` for one that is not there for policies: not on a node yet, on the node's own network (its traffic is the node's, which
    /// selectors do not select), or ended, when its addresses are other pods'.
    pub fn of(object: &Object) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        let status = object.status.as_ref();
        let ended = status.and_then(|status| status.phase.as_deref()).is_some_and(|phase| ENDED.contains(&phase));
        if ended || spec.host_network == Some(true) {
            return None;
        }
        let addresses = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
        let ports = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = ports.flat_map(|container| container.ports.iter().flatten());
        Some(Self {
            node: spec.node_name.clone().filter(|node| !node.is_empty())?,
            labels: object.metadata.labels.clone().unwrap_or_default(),
            addresses: addresses.iter().filter_map(|address| address.ip.parse().ok()).collect(),
            ports: ports
                .filter_map(|port| {
                    Some(NamedPort {
                        name: port.name.clone()?,
                        protocol: Protocol::of(port.protocol.as_deref())?,
                        port: u16::try_from(port.container_port).ok()?,
                    })
                })
                .collect(),
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
        })
    }
}

const ENDED: [&str; 2] = ["Succeeded", "Failed"];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value) -> Option<Pod> {
        let metadata = json!({"name": "a", "namespace": "default", "labels": {"app": "a"}});
        Pod::of(&serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap())
    }

    #[test]
    fn a_pod_has_addresses_and_named_ports() {
        let ports = json!([
            {"name": "http", "containerPort": 80},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 81},
        ]);
        let spec = json!({"nodeName": "edge-1", "containers": [{"name": "c", "ports": ports}]});
        let pod = pod(spec, json!({"phase": "Running", "podIPs": [{"ip": "10.42.0.7"}, {"ip": "fd42::7"}]})).unwrap();
        assert_eq!(pod.addresses, ["10.42.0.7".parse::<IpAddr>().unwrap(), "fd42::7".parse().unwrap()]);
        let named = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
        assert_eq!(pod.ports, [named("http", Protocol::Tcp, 80), named("dns", Protocol::Udp, 53)]);
    }

    #[test]
    fn some_pods_are_not_there_for_policies() {
        let containers = json!([{"name": "c"}]);
        let on_node = json!({"nodeName": "edge-1", "containers": containers});
        assert!(pod(on_node.clone(), json!({"phase": "Pending"})).is_some());
        for phase in ENDED {
            assert_eq!(pod(on_node.clone(), json!({"phase": phase, "podIPs": [{"ip": "10.42.0.7"}]})), None);
        }
        assert_eq!(pod(json!({"containers": containers}), json!({})), None, "not scheduled");
        let on_host = json!({"nodeName": "edge-1", "hostNetwork": true, "containers": containers});
        assert_eq!(pod(on_host, json!({"phase": "Running", "podIPs": [{"ip": "192.0.2.1"}]})), None);
    }
}
