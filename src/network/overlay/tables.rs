//! What the kernel has to know so that packets for other nodes' pods find their way, and the steps there from what it knows.
//!
//! ```text
//! pod range ──route──► next hop ──neighbour──► hardware address ──forwarding──► node's address      (vxlan)
//! pod range ──route──► node's address                                                              (host-gw)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::mac::Mac;

/// The overlay's part of the kernel's tables, of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Where packets for pods go next.
    pub(super) routes: BTreeSet<Route>,
    /// The hardware addresses of next hops on the overlay device.
    pub(super) neighbours: BTreeMap<IpAddr, Mac>,
    /// The nodes behind those.
    pub(super) forwarding: BTreeMap<Mac, IpAddr>,
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) pods: IpNet,
    pub(super) gateway: IpAddr,
    /// The index of the device it leaves by.
    pub(super) device: u32,
    /// Whether the kernel takes the gateway to be on the device without looking.
    pub(super) onlink: bool,
    pub(super) metric: u32,
}

/// One step. Setting replaces in one go what is there for the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    SetForwarding(Mac, IpAddr),
    SetNeighbour(IpAddr, Mac),
    SetRoute(Route),
    RemoveRoute(Route),
    RemoveNeighbour(IpAddr),
    RemoveForwarding(Mac),
}

impl Tables {
    /// The steps from here to `wanted`, in an order in which no packet finds half a way that it had a whole one before. What is right
    /// is not touched.
    pub(super) fn changes_to(&self, wanted: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let differing = wanted.forwarding.iter().filter(|(mac, address)| self.forwarding.get(*mac) != Some(*address));
        changes.extend(differing.map(|(mac, address)| Change::SetForwarding(*mac, *address)));
        let differing = wanted.neighbours.iter().filter(|(hop, mac)| self.neighbours.get(*hop) != Some(*mac));
        changes.extend(differing.map(|(hop, mac)| Change::SetNeighbour(*hop, *mac)));
        let (mut removed, mut set) = (Vec::new(), Vec::new());
        for route in wanted.routes.difference(&self.routes) {
            // IPv6 takes no next hop while there is a route to it by another device.
            let elsewhere = |present: &&Route| present.pods == route.pods && present.device != route.device;
            removed.extend(self.routes.iter().filter(elsewhere).copied());
            set.push(Change::SetRoute(*route));
        }
        changes.extend(removed.iter().map(|route| Change::RemoveRoute(*route)));
        changes.extend(set);

        let stale = self.routes.difference(&wanted.routes).filter(|route| !removed.contains(route));
        changes.extend(stale.map(|route| Change::RemoveRoute(*route)));
        let stale = self.neighbours.keys().filter(|hop| !wanted.neighbours.contains_key(hop));
        changes.extend(stale.map(|hop| Change::RemoveNeighbour(*hop)));
        let stale = self.forwarding.keys().filter(|mac| !wanted.forwarding.contains_key(mac));
        changes.extend(stale.map(|mac| Change::RemoveForwarding(*mac)));
        changes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Tables {
        /// What the kernel does.
        fn apply(&mut self, change: Change) {
            match change {
                Change::SetForwarding(mac, address) => drop(self.forwarding.insert(mac, address)),
                Change::SetNeighbour(hop, mac) => drop(self.neighbours.insert(hop, mac)),
                Change::SetRoute(route) => {
                    self.routes.retain(|present| (present.pods, present.metric) != (route.pods, route.metric));
                    self.routes.insert(route);
                }
                Change::RemoveRoute(route) => drop(self.routes.remove(&route)),
                Change::RemoveNeighbour(hop) => drop(self.neighbours.remove(&hop)),
                Change::RemoveForwarding(mac) => drop(self.forwarding.remove(&mac)),
            }
        }

        /// The node that packets for `pods` get to.
        fn end(&self, pods: &IpNet) -> Option<IpAddr> {
            let route = self.routes.iter().find(|route| route.pods == *pods)?;
            self.forwarding.get(self.neighbours.get(&route.gateway)?).copied()
        }
    }

    fn mac(n: u8) -> Mac {
        Mac::try_from([2, 0, 0, 0, 0, n].as_slice()).unwrap()
    }

    /// Tables of some nodes out of eight, each with one of three hardware addresses of its own and one of three addresses.
    fn tables() -> impl Strategy<Value = Tables> {
        let nodes = proptest::collection::btree_map(0u8..8, (0u8..3, 0u8..3), 0..8);
        nodes.prop_map(|nodes| {
            let mut tables = Tables::default();
            for (node, (device, address)) in nodes {
                let hop = IpAddr::from([10, 42, node, 0]);
                let mac = mac(node * 3 + device);
                tables.routes.insert(Route {
                    pods: IpNet::new(hop, 24).unwrap(),
                    gateway: hop,
                    device: 7,
                    onlink: true,
                    metric: 0,
                });
                tables.neighbours.insert(hop, mac);
                tables.forwarding.insert(mac, IpAddr::from([10, 0, node, address]));
            }
            tables
        })
    }

    proptest! {
        #[test]
        fn the_steps_lead_there(present in tables(), wanted in tables()) {
            let mut tables = present.clone();
            for change in present.changes_to(&wanted) {
                tables.apply(change);
            }
            prop_assert_eq!(tables, wanted);
        }

        #[test]
        fn a_node_that_stays_is_reached_at_every_step(present in tables(), wanted in tables()) {
            let staying: Vec<_> = present.routes.intersection(&wanted.routes).map(|route| route.pods).collect();
            let mut tables = present.clone();
            for change in present.changes_to(&wanted) {
                tables.apply(change);
                for pods in &staying {
                    let end = tables.end(pods);
                    prop_assert!(end.is_some() && (end == present.end(pods) || end == wanted.end(pods)), "{change:?}");
                }
            }
        }

        #[test]
        fn what_is_right_is_not_touched(tables in tables()) {
            prop_assert!(tables.changes_to(&tables.clone()).is_empty());
        }
    }
}
