//! The cluster's address plan.

use std::net::IpAddr;

use ipnet::IpNet;

/// Address ranges and names that every node of a cluster agrees on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetwork {
    /// Pod ranges, one per address family, the primary first (`--cluster-cidr`).
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges, families in the same order as `cluster_cidrs` (`--service-cidr`).
    pub service_cidrs: Vec<IpNet>,
    /// Ports for NodePort services, both ends included (`--service-node-port-range`).
    pub node_ports: PortRange,
    /// Addresses of the cluster DNS service, one per family (`--cluster-dns`); the tenth of each service range unless given.
    pub cluster_dns: Vec<IpAddr>,
    /// The DNS domain, without a trailing dot (`--cluster-domain`).
    pub cluster_domain: String,
    /// How pod traffic travels between nodes (`--flannel-backend`).
    pub overlay: Overlay,
}

impl ClusterNetwork {
    /// The first address of the primary service range: the `kubernetes` Service.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        nth_address(&self.service_cidrs[0], 1)
    }
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port, at least `first`.
    pub last: u16,
}

/// The overlay that connects the pods of different nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// VXLAN, VNI 1, UDP port 8472, device `flannel.1`.
    Vxlan,
    /// None of ours: the user brings a CNI plugin.
    None,
}

/// The address `offset` past the start of `range`; `offset` lies within every range that validation lets through.
pub(crate) fn nth_address(range: &IpNet, offset: u32) -> IpAddr {
    match range.network() {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + offset).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + u128::from(offset)).into()),
    }
}
