//! What of each node others must not have: its addresses, and a server's names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::{ClusterView, Derived};

/// What servers' nodes are labelled with: at least one of them.
const SERVER_ROLES: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/etcd"];

/// A node, by what others must not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The node's name.
    pub name: String,
    /// Where servers dial its kubelet. A server is reached by its external addresses too; those of other nodes are left out, since
    /// all machines behind one router share theirs.
    pub addresses: BTreeSet<IpAddr>,
    /// A server's hostnames. Those of other nodes are left out, since machines made of one image share theirs.
    pub hostnames: BTreeSet<String>,
    /// Whether it is a server.
    pub is_server: bool,
    /// Whether it answers.
    pub is_ready: bool,
}

impl ClusterView {
    /// All nodes that there are.
    pub fn neighbours(&self) -> Derived<Arc<Vec<Neighbour>>> {
        let all = |nodes: &BTreeMap<String, Neighbour>| Arc::new(nodes.values().cloned().collect());
        self.nodes().derive(|node| Some(Neighbour::of(node)), all)
    }
}

impl Neighbour {
    /// As its object tells.
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let told = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let is_server = SERVER_ROLES.iter().any(|role| node.labels().contains_key(*role));
        let counts = |kind: &str| kind == "InternalIP" || (is_server && kind == "ExternalIP");
        let ips = told.iter().filter(|address| counts(&address.type_));
        let ips = ips.filter_map(|address| address.address.parse::<IpAddr>().ok());
        let names = told.iter().filter(|address| is_server && !address.type_.ends_with("IP"));
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        Self {
            name: node.name_any(),
            addresses: ips.map(|ip| ip.to_canonical()).collect(),
            hostnames: names.map(|address| address.address.to_ascii_lowercase()).collect(),
            is_server,
            is_ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        }
    }
}
