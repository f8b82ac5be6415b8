//! How pod traffic travels between nodes: this node's end in each address family, and the ways to the other nodes.
//!
//! ```text
//! Overlay ──attach──► Attachment ──reconcile(members)──► the kernel's tables
//!  what the node      its devices    every node of the     routes, neighbours, forwarding entries:
//!  was given                         cluster               only what differs is changed
//! ```
//!
//! Nothing goes with the process: packets flow while nobody is there to change their ways.

mod flannel;
mod host_gw;
mod kernel;
mod mac;
#[cfg(test)]
mod nodes;
mod tables;
mod vxlan;

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::Handle;
use tracing::info;

use self::{
    flannel::Peer,
    kernel::Scope,
    tables::{Change, Tables},
    vxlan::{Device, Vxlan},
};
pub use self::{
    flannel::{Backend, Endpoint, Member, PeerError, annotations, is_annotation},
    mac::Mac,
    vxlan::PORT as VXLAN_PORT,
};
use crate::{
    address::{Family, Underlay},
    netlink::{NetlinkError, converse},
};

/// What a node is given to be on the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// What carries the packets.
    pub backend: Backend,
    /// The node's name.
    pub node: String,
    /// Pod ranges of the cluster, one per family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Pod ranges of this node, one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// What the packets travel over, one per family.
    pub underlays: Vec<Underlay>,
}

/// A node that is on the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    node: String,
    backend: Backend,
    ends: Vec<End>,
}

/// The node's end in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    cluster: IpNet,
    pods: IpNet,
    underlay: Underlay,
    /// Not under host-gw.
    device: Option<Device>,
}

/// Why the node is not on the overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Pods and underlay have to be of one family.
    #[error(
        "the overlay for pods in {pod_cidr} needs an address of this node in that family, and it has none: set --node-ip for both families"
    )]
    Families {
        /// The node's pod range.
        pod_cidr: IpNet,
    },
    /// The cluster's plan and what the node was given do not fit.
    #[error(
        "the node's pod range {pod_cidr} is not in the cluster's range: delete the node's object, and it registers anew with a range that is"
    )]
    Outside {
        /// The node's pod range.
        pod_cidr: IpNet,
    },
    /// The kernel was built without VXLAN.
    #[error("the kernel has no VXLAN: load or build the module vxlan, or choose --flannel-backend=host-gw or none")]
    Unsupported,
    /// Someone else's device uses our network identifier and port.
    #[error(
        "another VXLAN device already uses VNI {} and UDP port {}: remove it (`ip -d link show type vxlan` lists it)",
        vxlan::VNI,
        vxlan::PORT
    )]
    Taken,
    /// The kernel refused or did not answer.
    #[error("the overlay cannot be set up")]
    Netlink(#[from] NetlinkError),
    /// The device went while we worked on it.
    #[error("the overlay device {0} was removed by someone else while it was set up")]
    Gone(&'static str),
}

impl Overlay {
    /// Puts the node on the overlay: makes its devices, makes right those that are there, and removes those of another backend or
    /// family. Devices that are right stay as they are, with all that goes through them.
    ///
    /// # Errors
    /// The kernel has no such devices, or refuses or does not answer.
    pub async fn attach(&self) -> Result<Attachment, OverlayError> {
        let mut ends = Vec::new();
        for pods in &self.pod_cidrs {
            let of_family = |address: IpAddr| Family::of(address) == Family::of(pods.addr());
            let cluster = self.cluster_cidrs.iter().find(|cidr| cidr.contains(pods));
            let cluster = *cluster.ok_or(OverlayError::Outside { pod_cidr: *pods })?;
            let underlay = self.underlays.iter().find(|underlay| of_family(underlay.address)).cloned();
            let underlay = underlay.ok_or(OverlayError::Families { pod_cidr: *pods })?;
            let device = match self.backend {
                Backend::Vxlan => Some(Vxlan::new(underlay.clone(), *pods, &self.node).ensure().await?),
                Backend::HostGw => None,
            };
            ends.push(End { cluster, pods: *pods, underlay, device });
        }
        let devices: Vec<_> = ends.iter().filter_map(|end| Some(end.device.as_ref()?.index)).collect();
        vxlan::remove_but(&devices).await?;
        Ok(Attachment { node: self.node.clone(), backend: self.backend, ends })
    }
}

impl Attachment {
    /// How other nodes reach this one, one a family.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let endpoint = |end: &End| match &end.device {
            Some(device) => Endpoint::Vxlan { address: end.underlay.address, mac: device.mac },
            None => Endpoint::HostGw { address: end.underlay.address },
        };
        self.ends.iter().map(endpoint).collect()
    }

    /// The MTU of pods' interfaces, in bytes: what passes in every family.
    pub fn mtu(&self) -> u32 {
        let mtu = |end: &End| end.device.as_ref().map_or(end.underlay.mtu, |device| device.mtu);
        self.ends.iter().map(mtu).min().unwrap_or_default()
    }

    /// Makes the kernel's tables lead to the pods of `members`, all nodes of the cluster, and to nobody else's. Returns the nodes that
    /// cannot be reached, with the reasons; the others are. What is right already is not touched.
    ///
    /// # Errors
    /// The kernel refuses a change, or does not answer.
    pub async fn reconcile(&self, members: &[Member]) -> Result<Vec<PeerError>, OverlayError> {
        let mut errors = Vec::new();
        for end in &self.ends {
            let (peers, wrong) = peers(members, &self.node, self.backend, end);
            let refused = end.reconcile(&peers).await?;
            // What is wrong with a node may be so in both families.
            let new: Vec<_> = wrong.into_iter().chain(refused).filter(|error| !errors.contains(error)).collect();
            errors.extend(new);
        }
        Ok(errors)
    }
}

/// Removes all that [`Overlay::attach`] and [`Attachment::reconcile`] leave on the host, for a cluster of these pod ranges.
///
/// # Errors
/// The kernel refuses, or does not answer.
pub async fn remove(cluster_cidrs: &[IpNet], underlays: &[Underlay]) -> Result<(), OverlayError> {
    vxlan::remove_but(&[]).await?;
    let devices: Vec<_> = underlays.iter().map(|underlay| underlay.index).collect();
    for cluster in cluster_cidrs {
        let scope = Scope { cluster: *cluster, devices: devices.clone(), overlay: None };
        change(&scope, &Tables::default(), |_, error| Err(error)).await?;
    }
    Ok(())
}

impl End {
    async fn reconcile(&self, peers: &[Peer]) -> Result<Vec<PeerError>, NetlinkError> {
        let overlay = self.device.as_ref().map(|device| device.index);
        let scope = Scope {
            cluster: self.cluster,
            devices: overlay.into_iter().chain([self.underlay.index]).collect(),
            overlay,
        };
        // What the kernel gives a route that names none.
        let metric = if self.pods.addr().is_ipv4() { 0 } else { 1024 };
        let wanted = match overlay {
            Some(device) => vxlan::tables(device, metric, peers),
            None => host_gw::tables(&self.underlay, metric, peers),
        };
        let mut errors = Vec::new();
        let changed = change(&scope, &wanted, |change, error| {
            errors.push(self.not_adjacent(peers, change, &error).ok_or(error)?);
            Ok(())
        })
        .await?;
        if changed > 0 {
            info!(nodes = wanted.routes.len(), cluster = %self.cluster, "Changed the ways to other nodes' pods.");
        }
        Ok(errors)
    }

    /// Who is meant where the kernel does not take a node for a gateway.
    fn not_adjacent(&self, peers: &[Peer], change: Change, error: &NetlinkError) -> Option<PeerError> {
        let Change::SetRoute(route) = change else { return None };
        let refused = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EINVAL].map(|errno| Some(errno as i32));
        let peer = peers.iter().find(|peer| peer.pods == route.pods)?;
        (self.device.is_none() && refused.contains(&error.errno())).then(|| PeerError::NotAdjacent {
            node: peer.node.clone(),
            address: route.gateway,
            interface: self.underlay.interface.clone(),
        })
    }
}

/// The other nodes that `end` reaches, and those it cannot. Of two with the same pods, the first by name is reached.
fn peers(members: &[Member], own: &str, backend: Backend, end: &End) -> (Vec<Peer>, Vec<PeerError>) {
    let mut peers: Vec<Peer> = Vec::new();
    let mut errors = Vec::new();
    let mut members: Vec<_> = members.iter().filter(|member| member.name != own).collect();
    members.sort_by_key(|member| &member.name);
    for member in members {
        let peer = match member.peer(Family::of(end.pods.addr()), backend) {
            Ok(Some(peer)) => peer,
            Ok(None) => continue,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let overlap = |other: &IpNet| other.contains(&peer.pods) || peer.pods.contains(other);
        let what = if !end.cluster.contains(&peer.pods) {
            Some(format!("is not in the cluster's range {}", end.cluster))
        } else if overlap(&end.pods) {
            Some("is this node's own".to_owned())
        } else {
            peers.iter().find(|other| overlap(&other.pods)).map(|other| format!("is that of node {} too", other.node))
        };
        match what {
            Some(what) => errors.push(PeerError::Range { node: peer.node, pods: peer.pods, what }),
            None => peers.push(peer),
        }
    }
    (peers, errors)
}

/// Makes the kernel's tables what is `wanted` and counts the changes. `refused` says what follows where the kernel refuses one; the rest is
/// done first in any case.
async fn change(
    scope: &Scope,
    wanted: &Tables,
    mut refused: impl FnMut(Change, NetlinkError) -> Result<(), NetlinkError>,
) -> Result<usize, NetlinkError> {
    converse(async |handle: Handle| {
        let changes = kernel::read(&handle, scope).await?.changes_to(wanted);
        let mut made = 0;
        let mut outcome = Ok(());
        for change in changes {
            match kernel::apply(&handle, scope, change).await {
                Ok(()) => made += 1,
                Err(error) => outcome = outcome.and(refused(change, error)),
            }
        }
        outcome.map(|()| made)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, pods: &str) -> Member {
        let endpoint = Endpoint::HostGw { address: "10.9.0.7".parse().unwrap() };
        let written = annotations(&[endpoint], &[], &std::collections::BTreeMap::new());
        Member {
            name: name.into(),
            pod_cidrs: vec![pods.parse().unwrap()],
            annotations: written.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    #[test]
    fn ranges_that_cannot_be_a_peers_are_left_out_and_named() {
        let underlay = Underlay { address: "10.9.0.1".parse().unwrap(), interface: "eth0".into(), index: 2, mtu: 1500 };
        let (cluster, pods) = ("10.42.0.0/16".parse().unwrap(), "10.42.1.0/24".parse().unwrap());
        let end = End { cluster, pods, underlay, device: None };
        let members = [
            member("twin", "10.42.2.0/24"),
            member("own", "10.42.1.0/24"),
            member("thief", "10.42.1.128/25"),
            member("peer", "10.42.2.0/24"),
            member("stranger", "192.0.2.0/24"),
        ];
        let (reached, errors) = peers(&members, "own", Backend::HostGw, &end);
        assert_eq!(reached.iter().map(|peer| peer.node.as_str()).collect::<Vec<_>>(), ["peer"]);
        let told: Vec<_> = errors.iter().map(PeerError::to_string).collect();
        assert!(
            told[0].starts_with("node stranger has the pod range 192.0.2.0/24, which is not in the cluster's range")
        );
        assert!(told[1].starts_with("node thief has the pod range 10.42.1.128/25, which is this node's own"));
        assert!(told[2].starts_with("node twin has the pod range 10.42.2.0/24, which is that of node peer too"));
    }

    #[tokio::test]
    async fn a_node_without_an_address_of_a_family_is_told_so() {
        let overlay = Overlay {
            backend: Backend::Vxlan,
            node: "own".into(),
            cluster_cidrs: vec!["fd42::/48".parse().unwrap()],
            pod_cidrs: vec!["fd42::/64".parse().unwrap()],
            underlays: Vec::new(),
        };
        let error = overlay.attach().await.unwrap_err().to_string();
        assert!(error.contains("fd42::/64") && error.contains("--node-ip"), "{error}");
        let foreign = Overlay { pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()], ..overlay };
        assert!(matches!(foreign.attach().await, Err(OverlayError::Outside { .. })));
    }
}
