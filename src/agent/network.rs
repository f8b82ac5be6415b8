//! The node's place in the pod network, from the range it was given.

use std::{net::IpAddr, path::Path};

use ipnet::IpNet;
use k3s_components::{Node, Paths, ProxyMode};
use k3s_config::network::{ClusterNetwork, Overlay};
use k3s_network::{CniConfig, PodNat, SubnetEnv, Underlay, overlay::Vxlan};
use tracing::info;

use crate::Error;

/// Where flannel's CNI plugin and everything made for it look for the node's range.
const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// Tells containerd how pods are wired up. Nothing in it depends on the node's range, so that kubelet finds the network ready
/// the first time it asks.
pub(crate) fn install_cni(node: &Node, paths: &Paths) -> Result<(), Error> {
    let config = match (&node.config.cni_conf, node.network.overlay) {
        (Some(file), _) => CniConfig::File(file.clone()),
        (None, Overlay::Vxlan) => {
            CniConfig::Flannel { subnet_file: SUBNET_ENV.into(), packet_filter: packet_filter(node.proxy_mode) }
        }
        (None, Overlay::None) => return Ok(()),
    };
    config.install(&paths.agent_etc("cni/net.d"))?;
    Ok(())
}

/// Wires the node's pod ranges up: overlay device, NAT for what leaves the cluster, and the range itself for the CNI plugin, last,
/// since pods wait for it.
pub(crate) async fn join(node: &Node, pod_cidrs: Vec<IpNet>) -> Result<(), Error> {
    let ClusterNetwork { cluster_cidrs, overlay: Overlay::Vxlan, .. } = &node.network else { return Ok(()) };
    let underlay = underlay(node).await?;
    let primary = pod_cidrs[0];
    let vxlan = Vxlan::new(underlay, primary, &node.config.name)?;
    let device = vxlan.ensure().await?;
    PodNat { pod_cidrs: pod_cidrs.clone(), cluster_cidrs: cluster_cidrs.clone() }
        .apply(packet_filter(node.proxy_mode))
        .await?;
    SubnetEnv { cluster_cidrs: cluster_cidrs.clone(), pod_cidrs, mtu: device.mtu }.write(Path::new(SUBNET_ENV))?;
    info!(pods = %primary, device = device.name, "Joined the pod network.");
    Ok(())
}

/// The addresses to be known by: the user's, or that of the default route's interface.
pub async fn own_addresses(given: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let underlay = Underlay::of_default_route(k3s_network::Family::V4).await?;
    Ok(vec![underlay.address])
}

async fn underlay(node: &Node) -> Result<Underlay, Error> {
    let primary = node.ips[0];
    Ok(match &node.config.overlay_interface {
        Some(name) => Underlay::of_interface(name, k3s_network::Family::of(primary)).await?,
        None => Underlay::of_address(primary).await?,
    })
}

fn packet_filter(mode: ProxyMode) -> k3s_network::ProxyMode {
    match mode {
        ProxyMode::Nftables => k3s_network::ProxyMode::Nftables,
        ProxyMode::Iptables => k3s_network::ProxyMode::Iptables,
    }
}
