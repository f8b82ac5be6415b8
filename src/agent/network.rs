//! How the node's network is settled before anything runs.

use std::{convert::Infallible, net::IpAddr};

use k3s_balancer::Balancer;
use k3s_components::{Node, Paths};
use k3s_config::network::Overlay;
use k3s_network::{AddressChanges, CniConfig, LostAddresses, NetlinkError, Underlay};
use tokio::sync::{broadcast, watch};

use crate::Error;

/// Where flannel's CNI plugin and everything made for it look for the node's range.
pub(crate) const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// Tells containerd how pods are wired up. Nothing in it depends on the node's range, so that kubelet finds the network ready
/// the first time it asks.
pub(crate) fn install_cni(node: &Node, paths: &Paths) -> Result<(), Error> {
    let config = match (&node.config.cni_conf, node.network.overlay) {
        (Some(file), _) => CniConfig::File(file.clone()),
        (None, Overlay::Vxlan | Overlay::HostGw) => {
            CniConfig::Flannel { subnet_file: SUBNET_ENV.into(), packet_filter: node.proxy_mode }
        }
        (None, Overlay::None) => return Ok(()),
    };
    config.install(&paths.agent_etc("cni/net.d"))?;
    Ok(())
}

/// The addresses to be known by: the user's, or that of the default route's interface.
///
/// # Errors
/// No default route tells an address, or the kernel does not answer.
pub async fn own_addresses(given: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let underlay = Underlay::of_default_route(k3s_network::Family::V4).await?;
    Ok(vec![underlay.address])
}

/// Keeps `addresses` those to be known by, where the user named none. While no default route tells them, they stay.
///
/// # Errors
/// The kernel does not tell of changes any more.
pub async fn follow_own_addresses(given: &[IpAddr], addresses: &watch::Sender<Vec<IpAddr>>) -> Result<(), Error> {
    if !given.is_empty() {
        return Ok(());
    }
    let mut changes = AddressChanges::listen()?;
    loop {
        changes.next().await?;
        if let Ok(found) = own_addresses(given).await {
            addresses.send_if_modified(|known| {
                *known != found && {
                    *known = found;
                    true
                }
            });
        }
    }
}

/// Tells a balancer and tunnels of every address that the host loses, for as long as it is polled: what goes out from there is broken.
pub(crate) async fn follow_lost_addresses(
    balancer: Option<&Balancer>,
    tunnels: &broadcast::Sender<IpAddr>,
) -> Result<Infallible, NetlinkError> {
    let mut lost = LostAddresses::listen().await?;
    loop {
        for address in lost.next().await? {
            if let Some(balancer) = balancer {
                balancer.lost_address(address);
            }
            // Without a tunnel nobody hears.
            let _ = tunnels.send(address);
        }
    }
}
