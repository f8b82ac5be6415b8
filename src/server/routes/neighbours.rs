//! Addresses that other nodes have, as the API tells: nobody gets a certificate for them.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use k3s_http::Status;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use super::api_servers;
use crate::node_claim::NodeClaim;

/// How long a list of nodes counts: many that join at once cost one list a second.
const FRESH: Duration = Duration::from_secs(1);
/// An agent waits 10 s for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The cluster's nodes and servers, asked for when a node wants a certificate.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    listed: Mutex<Option<(Instant, Arc<Listed>)>>,
}

/// As the API told.
#[derive(Debug)]
struct Listed {
    nodes: Vec<Neighbour>,
    /// Where servers say that they are reached, with a node of theirs or without.
    servers: BTreeSet<IpAddr>,
}

/// A node, by what others must not have.
#[derive(Debug, PartialEq, Eq)]
struct Neighbour {
    name: String,
    /// Where servers dial its kubelet. A server is reached by its external addresses too; those of other nodes are left out, since
    /// all machines behind one router share theirs.
    addresses: BTreeSet<IpAddr>,
    /// A server's hostnames. Those of other nodes are left out, since machines made of one image share theirs.
    hostnames: BTreeSet<String>,
    is_server: bool,
    is_ready: bool,
}

impl Neighbours {
    /// Refuses a claim to what is another node's or server's, with 409; `from` is where the claim came from.
    pub(super) async fn check(&self, client: &Client, claim: &NodeClaim, from: IpAddr) -> Result<(), Status> {
        let listed = self.listed(client).await.ok_or_else(|| Status::unavailable("apiserver not ready"))?;
        listed.check(claim, from.to_canonical())
    }

    async fn listed(&self, client: &Client) -> Option<Arc<Listed>> {
        let mut known = self.listed.lock().await;
        if let Some((_, listed)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(listed.clone());
        }
        let nodes = Api::<Node>::all(client.clone());
        // Out of kube-apiserver's memory.
        let cached = ListParams::default().match_any();
        let (nodes, servers) =
            tokio::join!(timeout(TIMEOUT, nodes.list(&cached)), api_servers::list(Some(client.clone())));
        let nodes = match nodes {
            Ok(Ok(nodes)) => nodes.iter().map(Neighbour::of).collect(),
            Ok(Err(error)) => {
                debug!(%error, "Which addresses nodes have is not known.");
                return None;
            }
            Err(_) => {
                debug!("The API did not tell in time which addresses nodes have.");
                return None;
            }
        };
        let servers = servers.iter().map(|server| server.ip().to_canonical()).collect();
        let listed = Arc::new(Listed { nodes, servers });
        *known = Some((Instant::now(), listed.clone()));
        Some(listed)
    }
}

impl Listed {
    fn check(&self, claim: &NodeClaim, from: IpAddr) -> Result<(), Status> {
        let name = claim.name.as_str();
        let (own, others): (Vec<_>, Vec<_>) = self.nodes.iter().partition(|node| node.name == name);
        for node in others {
            if let Some(ip) = claim.ips.iter().find(|ip| node.addresses.contains(ip) && !node.has_left(**ip, from)) {
                warn!(node = name, %ip, owner = node.name, "Refused a node: another one has its address.");
                return Err(Status::conflict(format!(
                    "{ip} is an address of the node {other}; if that is gone, run `kubectl delete node {other}`, else choose another \
                     address with --node-ip or --node-external-ip",
                    other = node.name
                )));
            }
            if node.hostnames.contains(name) {
                return Err(Status::conflict(format!(
                    "{name} is a name of the server {}; choose another one with --node-name",
                    node.name
                )));
            }
        }
        let is_own = |ip: &IpAddr| own.iter().any(|node| node.is_server && node.addresses.contains(ip));
        match claim.ips.iter().find(|ip| self.servers.contains(ip) && !is_own(ip)) {
            Some(ip) => Err(Status::conflict(format!(
                "{ip} is an address of a server; choose another one with --node-ip or --node-external-ip"
            ))),
            None => Ok(()),
        }
    }
}

impl Neighbour {
    fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let told = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let is_server = node.labels().contains_key(CONTROL_PLANE);
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

    /// Whether another machine has the address by now: this node does not answer, and who claims the address speaks from it. DHCP
    /// gives addresses to others, and machines get other names.
    fn has_left(&self, ip: IpAddr, from: IpAddr) -> bool {
        !self.is_server && !self.is_ready && ip == from
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, ready: &str, labels: Value, addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<Value> =
            addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        let conditions = json!([{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": ready}]);
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses, "conditions": conditions},
        }))
        .unwrap()
    }

    fn cluster() -> Listed {
        let outside = ("ExternalIP", "198.51.100.1");
        let nodes = [
            node(
                "s2",
                "Unknown",
                json!({CONTROL_PLANE: "true"}),
                &[("InternalIP", "192.0.2.2"), ("ExternalIP", "198.51.100.2"), ("Hostname", "Rack-7.lan")],
            ),
            node("edge-1", "True", json!({}), &[("InternalIP", "192.0.2.11"), outside, ("Hostname", "device")]),
            node("edge-2", "Unknown", json!({}), &[("InternalIP", "192.0.2.12"), ("InternalIP", "2001:db8::12")]),
        ];
        Listed {
            nodes: nodes.iter().map(Neighbour::of).collect(),
            servers: [[192, 0, 2, 2].into(), [192, 0, 2, 3].into()].into(),
        }
    }

    fn check(name: &str, ips: &str, from: &str) -> Result<(), String> {
        let ips = ips.split(',').map(|ip| ip.parse().unwrap()).collect();
        let claim = NodeClaim { name: name.parse().unwrap(), password: k3s_identity::Password::new("s3cret"), ips };
        cluster().check(&claim, from.parse().unwrap()).map_err(|status| format!("{status:?}"))
    }

    #[test]
    fn what_is_anothers_is_refused() {
        for (name, ips, whose) in [
            ("evil", "192.0.2.11", "192.0.2.11 is an address of the node edge-1"),
            ("evil", "192.0.2.66,192.0.2.2", "192.0.2.2 is an address of the node s2"),
            ("evil", "198.51.100.2", "198.51.100.2 is an address of the node s2"),
            ("evil", "192.0.2.3", "192.0.2.3 is an address of a server"),
            ("edge-1", "192.0.2.3", "192.0.2.3 is an address of a server"),
            ("edge-1", "2001:db8::12", "2001:db8::12 is an address of the node edge-2"),
            ("rack-7.lan", "192.0.2.66", "rack-7.lan is a name of the server s2"),
        ] {
            let refused = check(name, ips, "192.0.2.66").unwrap_err();
            assert!(refused.contains("409") && refused.contains(whose), "{name} {ips}: {refused}");
        }
    }

    #[test]
    fn a_node_has_its_own_addresses_and_new_ones() {
        for (name, ips) in [
            ("edge-1", "192.0.2.11,192.0.2.111,2001:db8::11"),
            ("edge-2", "192.0.2.66"),
            ("s2", "192.0.2.2,198.51.100.2"),
            ("edge-3", "192.0.2.13,198.51.100.1"),
            ("device", "192.0.2.13"),
        ] {
            assert_eq!(check(name, ips, "192.0.2.66"), Ok(()), "{name} {ips}");
        }
    }

    #[test]
    fn what_a_silent_node_left_goes_to_who_speaks_from_it() {
        assert_eq!(check("edge-3", "192.0.2.12", "192.0.2.12"), Ok(()));
        assert!(check("edge-3", "192.0.2.12", "192.0.2.66").is_err(), "from elsewhere");
        assert!(check("edge-3", "192.0.2.12,192.0.2.11", "192.0.2.12").is_err(), "one of two");
        assert!(check("edge-3", "192.0.2.11", "192.0.2.11").is_err(), "the other one answers");
        assert!(check("edge-3", "192.0.2.2", "192.0.2.2").is_err(), "a server");
    }
}
