//! What a node lets its servers reach through its tunnels.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::message::Target;

/// The port of the container runtime's streaming server, which k3s fixes.
pub(crate) const STREAMING_PORT: u16 = 10010;

/// What a node's servers may reach through it (`--egress-selector-mode`), now: pods come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Where the kubelet listens. Servers ask for its port on loopback and are led here.
    pub kubelet: SocketAddr,
    /// What else there is.
    pub reach: Reach,
}

/// What servers reach beside kubelet and the container runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reach {
    /// Nothing: the modes `agent` and `disabled`.
    #[default]
    Kubelet,
    /// The pods of this node: mode `pod`.
    Pods {
        /// Their addresses, those on the host's network left out; every port of them.
        pods: BTreeSet<IpAddr>,
        /// The node's own addresses.
        node: BTreeSet<IpAddr>,
        /// What containers on the host's network say to listen on by TCP: the ports of the node's addresses.
        host_ports: BTreeSet<u16>,
    },
    /// Every port of these: the cluster's pod networks and the node's own addresses in mode `cluster`.
    Networks(Vec<IpNet>),
}

impl Rules {
    /// Where to dial for `target`; `None` if servers may not reach it.
    ///
    /// Names are never looked up: k3s' servers send addresses.
    pub fn address_for(&self, target: &Target) -> Option<SocketAddr> {
        let address: SocketAddr = target.address.parse().ok().filter(|_| target.network == "tcp")?;
        let (ip, port) = (address.ip().to_canonical(), address.port());
        if ip.is_loopback() {
            return match port {
                port if port == self.kubelet.port() => Some(self.kubelet),
                STREAMING_PORT => Some(address),
                _ => None,
            };
        }
        let allowed = match &self.reach {
            Reach::Kubelet => false,
            Reach::Pods { pods, node, host_ports } => {
                pods.contains(&ip) || (node.contains(&ip) && host_ports.contains(&port))
            }
            Reach::Networks(networks) => networks.iter().any(|network| network.contains(&ip)),
        };
        allowed.then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(reach: Reach) -> Rules {
        Rules { kubelet: "192.0.2.7:10250".parse().unwrap(), reach }
    }

    /// Which of these may be reached, and where that leads.
    fn reached<'a>(rules: &Rules, addresses: &[&'a str]) -> Vec<(&'a str, String)> {
        let dial = |address: &&'a str| Some((*address, rules.address_for(&Target::tcp(*address))?.to_string()));
        addresses.iter().filter_map(dial).collect()
    }

    const ADDRESSES: [&str; 12] = [
        "127.0.0.1:10250",
        "[::1]:10250",
        "127.0.0.1:10010",
        "127.0.0.1:6443",
        "192.0.2.7:10250",
        "192.0.2.7:9100",
        "10.42.1.3:80",
        "[::ffff:10.42.1.3]:80",
        "10.42.9.9:80",
        "localhost:10250",
        "node:10250",
        "10.42.1.3",
    ];

    #[test]
    fn the_kubelet_is_always_reached_where_it_listens() {
        assert_eq!(
            reached(&rules(Reach::Kubelet), &ADDRESSES),
            [
                ("127.0.0.1:10250", "192.0.2.7:10250".to_owned()),
                ("[::1]:10250", "192.0.2.7:10250".to_owned()),
                ("127.0.0.1:10010", "127.0.0.1:10010".to_owned()),
            ]
        );
    }

    #[test]
    fn pods_of_the_node_and_ports_on_its_own_network() {
        let rules = rules(Reach::Pods {
            pods: ["10.42.1.3".parse().unwrap()].into(),
            node: ["192.0.2.7".parse().unwrap()].into(),
            host_ports: [9100].into(),
        });
        let reached = reached(&rules, &ADDRESSES);
        let beyond: Vec<_> = reached.iter().skip(3).map(|(asked, _)| *asked).collect();
        assert_eq!(beyond, ["192.0.2.7:9100", "10.42.1.3:80", "[::ffff:10.42.1.3]:80"]);
    }

    #[test]
    fn networks_with_every_port() {
        let rules = rules(Reach::Networks(vec!["10.42.0.0/16".parse().unwrap(), "192.0.2.7/32".parse().unwrap()]));
        let reached = reached(&rules, &ADDRESSES);
        let beyond: Vec<_> = reached.iter().skip(3).map(|(asked, _)| *asked).collect();
        assert_eq!(
            beyond,
            ["192.0.2.7:10250", "192.0.2.7:9100", "10.42.1.3:80", "[::ffff:10.42.1.3]:80", "10.42.9.9:80"]
        );
    }

    #[test]
    fn only_tcp() {
        let target = Target { network: "udp".to_owned(), address: "127.0.0.1:10250".to_owned() };
        assert_eq!(rules(Reach::Kubelet).address_for(&target), None);
    }
}
