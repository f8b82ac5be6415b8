//! Routes by way of the other nodes, as flannel's `host-gw` makes them: no encapsulation, and no router in between.

use super::{
    flannel::{Endpoint, Peer},
    tables::{Route, Tables},
};
use crate::address::Underlay;

/// The routes to `peers`, which lie beyond `underlay`.
pub(super) fn tables(underlay: &Underlay, metric: u32, peers: &[Peer]) -> Tables {
    let routes = peers.iter().filter_map(|peer| match peer.endpoint {
        Endpoint::HostGw { address } => {
            Some(Route { pods: peer.pods, gateway: address, device: underlay.index, onlink: false, metric })
        }
        Endpoint::Vxlan { .. } => None,
    });
    Tables { routes: routes.collect(), ..Tables::default() }
}
