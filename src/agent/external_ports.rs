//! Services at the node's external addresses (`--node-external-ip`), whose packets arrive at its internal ones: behind one-to-one NAT the
//! node does not have the others at all.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use k3s_components::Node;
use k3s_controllers::{BalancedPort, ClusterView};
use k3s_network::{ExternalPort, ExternalPorts};
use k3s_supervise::{Backoff, Supervisor};
use tokio::{select, time::sleep};
use tracing::{debug, warn};

use crate::error::chain;

/// The key of our sentence in the status.
const KEY: &str = "service-lb";
/// Between attempts at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The node's external addresses, each with the internal one that its packets come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ExternalAddresses(Vec<(IpAddr, IpAddr)>);

impl ExternalAddresses {
    /// Those of `node`.
    pub(crate) fn of(node: &Node) -> Self {
        Self::pair(&node.config.external_ips, &node.ips)
    }

    /// In the order of each family, as clouds number them; what is left over comes to the first.
    fn pair(external: &[IpAddr], internal: &[IpAddr]) -> Self {
        let mut pairs = Vec::new();
        for is_v4 in [true, false] {
            let of_family = |ips: &[IpAddr]| ips.iter().copied().filter(|ip| ip.is_ipv4() == is_v4).collect::<Vec<_>>();
            let internal = of_family(internal);
            for (index, external) in of_family(external).into_iter().enumerate() {
                pairs.extend(internal.get(index).or(internal.first()).map(|internal| (external, *internal)));
            }
        }
        pairs.retain(|(external, internal)| external != internal);
        Self(pairs)
    }

    /// Serves Services at them for as long as it is polled. What fails is told in the status and tried again.
    pub(crate) async fn run(&self, view: &ClusterView, supervisor: &Supervisor) {
        if self.0.is_empty() {
            return Self::clear().await;
        }
        let mut changes = view.balanced_ports(self.0.iter().map(|(external, _)| *external).collect());
        let (mut rules, mut ports) = (ExternalPorts::default(), self.ports(&changes.changed().await));
        let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
        loop {
            let failed = rules.set(&ports).await.err();
            match &failed {
                None => {
                    backoff.begin_anew();
                    supervisor.clear(KEY);
                }
                Some(error) => {
                    let sentence =
                        format!("Services are not served at this node's external addresses: {}.", chain(error));
                    warn!("{sentence}");
                    supervisor.warn(KEY, sentence);
                }
            }
            select! {
                changed = changes.changed() => ports = self.ports(&changed),
                () = rules.lost() => {}
                () = sleep(backoff.advance()), if failed.is_some() => {}
            }
        }
    }

    /// Leaves nothing of an earlier life in the packet filter.
    async fn clear() {
        if let Err(error) = ExternalPorts::remove().await {
            debug!(error = chain(&error), "The rules for external addresses could not be removed.");
        }
    }

    fn ports(&self, balanced: &BTreeSet<BalancedPort>) -> BTreeSet<ExternalPort> {
        let port = |balanced: &BalancedPort| {
            let (external, internal) = *self.0.iter().find(|(external, _)| *external == balanced.address)?;
            let protocol = match &*balanced.protocol {
                "TCP" => "tcp",
                "UDP" => "udp",
                "SCTP" => "sctp",
                _ => return None,
            };
            Some(ExternalPort { external, internal, protocol, port: balanced.number })
        };
        balanced.iter().filter_map(port).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn external_addresses_have_internal_ones_of_their_family() {
        let pairs = |external: &[&str], internal: &[&str]| {
            let pairs = ExternalAddresses::pair(&ips(external), &ips(internal)).0;
            pairs.iter().map(|(external, internal)| format!("{external} {internal}")).collect::<Vec<_>>()
        };
        assert_eq!(pairs(&["203.0.113.1"], &["10.0.0.1", "fd00::1"]), ["203.0.113.1 10.0.0.1"]);
        assert_eq!(
            pairs(&["203.0.113.1", "2001:db8::1", "203.0.113.2", "203.0.113.3"], &["10.0.0.1", "10.0.0.2"]),
            ["203.0.113.1 10.0.0.1", "203.0.113.2 10.0.0.2", "203.0.113.3 10.0.0.1"]
        );
        assert!(pairs(&["10.0.0.1"], &["10.0.0.1"]).is_empty(), "the node has it itself");
        assert!(pairs(&[], &["10.0.0.1"]).is_empty());
    }

    #[test]
    fn ports_are_served_where_their_packets_arrive() {
        let addresses = ExternalAddresses::pair(&ips(&["203.0.113.1"]), &ips(&["10.0.0.1"]));
        let balanced = |address: &str, protocol: &str| BalancedPort {
            address: address.parse().unwrap(),
            protocol: protocol.into(),
            number: 80,
        };
        let ports = addresses.ports(&[balanced("203.0.113.1", "UDP"), balanced("203.0.113.9", "TCP")].into());
        let expected = ExternalPort {
            external: "203.0.113.1".parse().unwrap(),
            internal: "10.0.0.1".parse().unwrap(),
            protocol: "udp",
            port: 80,
        };
        assert_eq!(ports, [expected].into());
    }
}
