//! Which way a connection of kube-apiserver's takes: from here, or through a node's tunnel.
//!
//! kube-apiserver asks for kubelets, and for the Services behind webhooks and aggregated APIs, by the same egress. A tunnel leads
//! to kubelets only, unless its node says that it leads to pods as well: asked for more, k3s' agents end the tunnel.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use http::uri::Authority;

use crate::rules::STREAMING_PORT;

/// What is known of the cluster's nodes and pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The node that this server is, whose kubelet is dialled.
    pub own_node: Option<String>,
    /// Where that node's kubelet listens; the port is that of the request.
    pub own_kubelet: IpAddr,
    /// By name.
    pub nodes: HashMap<String, Node>,
    /// Which node a pod's address belongs to; pods on their host's network left out. Empty unless tunnels lead to pods.
    pub pods: HashMap<IpAddr, String>,
}

/// A node, as the API tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its internal and external addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its hostnames, beside its name.
    pub hostnames: BTreeSet<String>,
    /// Where its kubelet listens; `None` before it has said so.
    pub kubelet_port: Option<u16>,
    /// Whether its tunnel leads to pods: the label `egress.k3s.io/cluster`.
    pub pod_egress: bool,
}

/// `host:port`, as CONNECT names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// A request that does not say where to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not host:port")]
pub struct NoDestination(String);

/// The way to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Dialled from here.
    Direct(Destination),
    /// Through this node's tunnel and no other way: the address is one on the node itself.
    Node {
        /// The node's name.
        node: String,
        /// On loopback of the node.
        address: SocketAddr,
    },
    /// Through this node's tunnel where there is one, else dialled from here.
    Pod {
        /// The node's name.
        node: String,
        /// As asked for.
        address: SocketAddr,
    },
}

impl Egress {
    /// A server that knows no node yet.
    pub fn new(own_node: Option<String>, own_kubelet: IpAddr) -> Self {
        Self { own_node, own_kubelet, nodes: HashMap::new(), pods: HashMap::new() }
    }

    /// The way to `destination`.
    pub fn route(&self, destination: Destination) -> Route {
        let port = destination.port;
        if let Some((name, node)) = self.node(&destination.host) {
            let is_own = self.own_node.as_ref() == Some(name);
            if port == STREAMING_PORT || node.kubelet_port == Some(port) {
                return if is_own {
                    Route::Direct(Destination { host: Host::Ip(self.own_kubelet), port })
                } else {
                    Route::Node { node: name.clone(), address: (self.loopback(), port).into() }
                };
            }
            return if is_own { Route::Direct(destination) } else { Self::to_pods(name, node, destination) };
        }
        let owner =
            destination.host.ip().and_then(|ip| self.pods.get(&ip)).filter(|name| self.own_node.as_ref() != Some(name));
        match owner.and_then(|name| self.nodes.get_key_value(name)) {
            Some((name, node)) => Self::to_pods(name, node, destination),
            None => Route::Direct(destination),
        }
    }

    fn node(&self, host: &Host) -> Option<(&String, &Node)> {
        match host {
            Host::Ip(ip) => self.nodes.iter().find(|(_, node)| node.addresses.contains(ip)),
            Host::Name(host) => self
                .nodes
                .get_key_value(host)
                .or_else(|| self.nodes.iter().find(|(_, node)| node.hostnames.contains(host))),
        }
    }

    fn to_pods(name: &str, node: &Node, destination: Destination) -> Route {
        match destination.host {
            Host::Ip(ip) if node.pod_egress => {
                Route::Pod { node: name.to_owned(), address: (ip, destination.port).into() }
            }
            _ => Route::Direct(destination),
        }
    }

    /// Of the family that this cluster's nodes listen on.
    fn loopback(&self) -> IpAddr {
        match self.own_kubelet {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

impl Host {
    fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Name(_) => None,
        }
    }
}

impl TryFrom<&Authority> for Destination {
    type Error = NoDestination;

    fn try_from(authority: &Authority) -> Result<Self, NoDestination> {
        let port = authority.port_u16().filter(|_| !authority.as_str().contains('@'));
        let port = port.ok_or_else(|| NoDestination(authority.to_string()))?;
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip.to_canonical()),
            Err(_) => Host::Name(host.to_owned()),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::from((*ip, self.port)).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: &str, pod_egress: bool) -> Node {
        Node {
            addresses: [address.parse().unwrap()].into(),
            hostnames: BTreeSet::new(),
            kubelet_port: Some(10250),
            pod_egress,
        }
    }

    fn cluster() -> Egress {
        let hostnames = ["worker.lan".to_owned()].into();
        Egress {
            own_node: Some("server".to_owned()),
            own_kubelet: "127.0.0.1".parse().unwrap(),
            nodes: HashMap::from([
                ("server".to_owned(), node("192.0.2.1", true)),
                ("plain".to_owned(), Node { hostnames, ..node("192.0.2.2", false) }),
                ("pods".to_owned(), node("192.0.2.3", true)),
                ("young".to_owned(), Node { kubelet_port: None, ..node("2001:db8::4", false) }),
            ]),
            pods: [("10.42.0.9", "server"), ("10.42.1.9", "plain"), ("10.42.2.9", "pods"), ("10.42.3.9", "gone")]
                .map(|(pod, node)| (pod.parse().unwrap(), node.to_owned()))
                .into(),
        }
    }

    fn route(egress: &Egress, destination: &str) -> String {
        let authority: Authority = destination.parse().unwrap();
        match egress.route(Destination::try_from(&authority).unwrap()) {
            Route::Direct(destination) => format!("direct {destination}"),
            Route::Node { node, address } => format!("node {node} {address}"),
            Route::Pod { node, address } => format!("pod {node} {address}"),
        }
    }

    #[test]
    fn kubelets_are_reached_through_their_nodes_tunnels() {
        for (destination, expected) in [
            ("192.0.2.2:10250", "node plain 127.0.0.1:10250"),
            ("192.0.2.3:10010", "node pods 127.0.0.1:10010"),
            ("[::ffff:192.0.2.2]:10250", "node plain 127.0.0.1:10250"),
            ("plain:10250", "node plain 127.0.0.1:10250"),
            ("worker.lan:10250", "node plain 127.0.0.1:10250"),
            ("[2001:db8::4]:10010", "node young 127.0.0.1:10010"),
            ("[2001:db8::4]:10250", "direct [2001:db8::4]:10250"),
        ] {
            assert_eq!(route(&cluster(), destination), expected, "{destination}");
        }
        let six = Egress { own_kubelet: "::1".parse().unwrap(), ..cluster() };
        assert_eq!(route(&six, "plain:10250"), "node plain [::1]:10250");
    }

    #[test]
    fn the_own_kubelet_is_dialled_where_it_listens() {
        for destination in ["192.0.2.1:10250", "server:10250"] {
            assert_eq!(route(&cluster(), destination), "direct 127.0.0.1:10250");
        }
        assert_eq!(route(&cluster(), "192.0.2.1:6443"), "direct 192.0.2.1:6443");
    }

    #[test]
    fn before_nodes_are_known_everything_is_dialled() {
        let unknown = Egress::new(Some("server".to_owned()), "127.0.0.1".parse().unwrap());
        for destination in ["192.0.2.1:10250", "server:10250"] {
            assert_eq!(route(&unknown, destination), format!("direct {destination}"));
        }
    }

    #[test]
    fn webhooks_and_aggregated_apis_are_dialled() {
        for destination in ["10.43.0.7:443", "hooks.example.com:8443", "192.0.2.2:443", "plain:443", "10.42.0.9:443"] {
            assert_eq!(route(&cluster(), destination), format!("direct {destination}"));
        }
    }

    #[test]
    fn pods_are_reached_through_nodes_that_lead_to_them() {
        for (destination, expected) in [
            ("10.42.2.9:8443", "pod pods 10.42.2.9:8443"),
            ("192.0.2.3:9443", "pod pods 192.0.2.3:9443"),
            ("10.42.1.9:8443", "direct 10.42.1.9:8443"),
            ("10.42.3.9:8443", "direct 10.42.3.9:8443"),
        ] {
            assert_eq!(route(&cluster(), destination), expected, "{destination}");
        }
    }

    #[test]
    fn a_destination_needs_a_port_and_nothing_else() {
        for wrong in ["node", "192.0.2.1", "[::1]", "user@node:10250", "node:99999"] {
            let authority: Authority = wrong.parse().unwrap();
            assert_eq!(Destination::try_from(&authority).unwrap_err().to_string(), format!("{wrong} is not host:port"));
        }
    }
}
