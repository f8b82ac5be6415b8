//! The ports that Services have at addresses of one node, as that node reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Service;

use super::{plan::Port, read, told_addresses};
use crate::{ClusterView, Derived};

/// A port of a Service of type LoadBalancer, at an address of its status.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BalancedPort {
    /// The address.
    pub address: IpAddr,
    /// As Kubernetes writes it.
    pub protocol: String,
    /// Its number.
    pub number: u16,
}

impl ClusterView {
    /// The ports that Services have at `addresses`.
    pub fn balanced_ports(&self, addresses: BTreeSet<IpAddr>) -> Derived<BTreeSet<BalancedPort>> {
        self.balanced_services().derive(
            move |service| Some(at(service, &addresses)).filter(|ports| !ports.is_empty()),
            |services: &BTreeMap<String, BTreeSet<BalancedPort>>| services.values().flatten().cloned().collect(),
        )
    }
}

fn at(service: &Service, addresses: &BTreeSet<IpAddr>) -> BTreeSet<BalancedPort> {
    let told = told_addresses(service).into_iter().filter_map(|address| address.parse().ok());
    let told: Vec<IpAddr> = told.filter(|address| addresses.contains(address)).collect();
    let ports = read::service(service).map(|service| service.ports).unwrap_or_default();
    let each = |Port { number, protocol }: Port| {
        told.iter().map(move |address| BalancedPort { address: *address, protocol: protocol.clone(), number })
    };
    ports.into_iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_service_counts_at_the_addresses_that_it_is_told_to_have() {
        let own = BTreeSet::from(["203.0.113.1".parse().unwrap()]);
        let ports = |spec: Value, ips: &[&str]| {
            let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            let service =
                json!({"metadata": {"name": "s"}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
            let ports = at(&serde_json::from_value(service).unwrap(), &own);
            ports.iter().map(|port| format!("{}:{}/{}", port.address, port.number, port.protocol)).collect::<Vec<_>>()
        };
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]});
        let both = ["203.0.113.1:80/TCP", "203.0.113.1:53/UDP"];
        assert_eq!(ports(spec.clone(), &["203.0.113.1", "203.0.113.2"]), both);
        assert!(ports(spec, &["203.0.113.2"]).is_empty(), "another node's");
        let classed = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/lb", "ports": [{"port": 80}]});
        assert!(ports(classed, &["203.0.113.1"]).is_empty(), "another load balancer's");
    }
}
