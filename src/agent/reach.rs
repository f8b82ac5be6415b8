//! What servers may reach through this node's tunnels, as the cluster's egress mode has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use k3s_config::server::EgressMode;
use k3s_tunnel::{Reach, Rules};

use tokio::sync::watch;

use crate::{cluster_config::ClusterConfig, membership::Known};

/// Where kubelet listens.
const KUBELET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10250);

/// Before anything is known of the cluster, and in the modes in which nothing else is reached.
pub(crate) fn kubelet_alone() -> Rules {
    Rules { kubelet: KUBELET, reach: Reach::Kubelet }
}

/// Keeps `rules` right for as long as it is polled.
pub(crate) async fn follow(mut known: watch::Receiver<Option<Known>>, ips: &[IpAddr], rules: &watch::Sender<Rules>) {
    known.mark_changed();
    while known.changed().await.is_ok() {
        if let Some(known) = &*known.borrow_and_update() {
            rules.send_replace(self::rules(&known.config, ips));
        }
    }
}

/// Whether servers may reach pods through this node's tunnels in `mode`.
pub(crate) fn leads_to_pods(mode: EgressMode) -> bool {
    mode == EgressMode::Cluster
}

/// What `config` lets servers reach on the node with these addresses.
fn rules(config: &ClusterConfig, ips: &[IpAddr]) -> Rules {
    let reach = match config.egress {
        EgressMode::Agent | EgressMode::Disabled | EgressMode::Pod => Reach::Kubelet,
        EgressMode::Cluster => {
            let own = ips.iter().copied().map(IpNet::from);
            Reach::Networks(config.network.cluster_cidrs.iter().copied().chain(own).collect())
        }
    };
    Rules { kubelet: KUBELET, reach }
}
