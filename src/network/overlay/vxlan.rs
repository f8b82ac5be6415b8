//! VXLAN as flannel makes it, so that nodes of both find each other: VNI 1, UDP port 8472, no learning, one device a family.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
};
use tracing::{debug, info};

use super::{
    OverlayError,
    flannel::{Endpoint, Peer},
    mac::Mac,
    tables::{Route, Tables},
};
use crate::{
    address::Underlay,
    netlink::{NetlinkError, converse, delete, link},
};

pub(super) const VNI: u32 = 1;
/// Where overlay devices listen, by UDP.
pub const PORT: u16 = 8472;
const DEVICE_V4: &str = "flannel.1";
const DEVICE_V6: &str = "flannel-v6.1";

/// One node's end of the overlay in one address family.
#[derive(Debug, Clone)]
pub(super) struct Vxlan {
    underlay: Underlay,
    /// Where the node itself is on the overlay: the first address of its pod range, which no pod gets.
    address: IpAddr,
    mac: Mac,
}

/// The device as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Its name.
    pub(super) name: &'static str,
    /// The kernel's index of it.
    pub(super) index: u32,
    /// Its hardware address, which other nodes send to.
    pub(super) mac: Mac,
    /// Its MTU, in bytes, which pods' interfaces have too.
    pub(super) mtu: u32,
}

impl Vxlan {
    /// The end of the node called `node_name`, whose pods are in `pod_cidr`. The name makes the hardware address, which therefore
    /// survives reboots and spares the other nodes an update.
    pub(super) fn new(underlay: Underlay, pod_cidr: IpNet, node_name: &str) -> Self {
        let address = pod_cidr.network();
        let mac = Mac::stable(device_of(address), node_name);
        Self { underlay, address, mac }
    }

    /// The MTU the device gets: the underlay's less the encapsulation.
    pub(super) fn mtu(&self) -> u32 {
        let overhead = if self.underlay.address.is_ipv4() { 50 } else { 70 };
        self.underlay.mtu.saturating_sub(overhead)
    }

    /// Makes the device, or makes the one that is there right. A right one stays as it is, hardware address included; one that
    /// differs in what cannot be changed is replaced.
    pub(super) async fn ensure(&self) -> Result<Device, OverlayError> {
        converse(async |handle: Handle| {
            let name = self.device();
            let mut link = link(&handle, name).await?;
            if let Some(present) = &link
                && !self.describes(present)
            {
                info!(device = name, "Replacing an overlay device that has other settings.");
                delete(&handle, name, present.header.index).await?;
                link = None;
            }
            if link.is_none() {
                self.add(&handle).await?;
                refuse_router_advertisements(name);
                debug!(device = name, "Created the overlay device.");
            }
            let link = self::link(&handle, name).await?.ok_or(OverlayError::Gone(name))?;
            let index = link.header.index;
            self.set_address(&handle, index).await?;
            if mtu(&link) != Some(self.mtu()) || !link.header.flags.contains(LinkFlags::Up) {
                let change = LinkUnspec::new_with_index(index).mtu(self.mtu()).up().build();
                let changed = handle.link().set(change).execute().await;
                changed.map_err(|error| NetlinkError::new(format!("bring up {name}"), error))?;
            }
            Ok(Device { name, index, mac: mac(&link).unwrap_or(self.mac), mtu: self.mtu() })
        })
        .await
    }

    fn device(&self) -> &'static str {
        device_of(self.address)
    }

    /// Whether `link` is this device in everything that only its creation sets.
    fn describes(&self, link: &LinkMessage) -> bool {
        let info = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => Some(info),
            _ => None,
        });
        let data = info.into_iter().flatten().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        });
        let is_vxlan = info.into_iter().flatten().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vxlan)));
        let local = match self.underlay.address {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        };
        let wanted = [
            InfoVxlan::Id(VNI),
            InfoVxlan::Port(PORT),
            InfoVxlan::Learning(false),
            InfoVxlan::Link(self.underlay.index),
            local,
        ];
        is_vxlan && data.is_some_and(|data| wanted.iter().all(|wanted| data.contains(wanted)))
    }

    async fn add(&self, handle: &Handle) -> Result<(), OverlayError> {
        let builder = LinkVxlan::new(self.device(), VNI).dev(self.underlay.index).port(PORT).learning(false);
        let builder = match self.underlay.address {
            IpAddr::V4(ip) => builder.local(ip),
            IpAddr::V6(ip) => builder.local6(ip),
        };
        let message = builder.mtu(self.mtu()).address(self.mac.bytes().to_vec()).build();
        let added = handle.link().add(message).execute().await;
        added.map_err(|error| {
            let error = NetlinkError::new(format!("create {}", self.device()), error);
            match error.errno().map(Errno::from_raw) {
                Some(Errno::EOPNOTSUPP) => OverlayError::Unsupported,
                Some(Errno::EEXIST | Errno::EADDRINUSE) => OverlayError::Taken,
                _ => error.into(),
            }
        })
    }

    /// Leaves the device with our address alone, apart from link-local ones: a former pod range's address would be used as a source.
    async fn set_address(&self, handle: &Handle, index: u32) -> Result<(), OverlayError> {
        let name = self.device();
        let present = handle.address().get().set_link_index_filter(index).execute();
        let present: Vec<AddressMessage> = present
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new(format!("list addresses of {name}"), error))?;
        let mut found = false;
        for message in present {
            let Some(ip) = ip(&message) else { continue };
            if ip == self.address && message.header.prefix_len == host_prefix(ip) {
                found = true;
            } else if !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
                let deleted = handle.address().del(message).execute().await;
                deleted.map_err(|error| NetlinkError::new(format!("take {ip} from {name}"), error))?;
            }
        }
        if !found {
            let added = handle.address().add(index, self.address, host_prefix(self.address)).execute().await;
            added.map_err(|error| NetlinkError::new(format!("give {} to {name}", self.address), error))?;
        }
        Ok(())
    }
}

/// What the kernel needs so that packets for `peers` travel by the device of index `device`, as flannel sets it up: the first address of a
/// peer's range is the next hop, and stands for the peer's own device.
pub(super) fn tables(device: u32, metric: u32, peers: &[Peer]) -> Tables {
    let mut tables = Tables::default();
    for Peer { pods, endpoint, .. } in peers {
        let Endpoint::Vxlan { address, mac } = *endpoint else { continue };
        let gateway = pods.network();
        tables.routes.insert(Route { pods: *pods, gateway, device, onlink: true, metric });
        tables.neighbours.insert(gateway, mac);
        tables.forwarding.insert(mac, address);
    }
    tables
}

/// Removes the overlay's devices, where there are any, but for those of index `kept`.
pub(super) async fn remove_but(kept: &[u32]) -> Result<(), NetlinkError> {
    converse(async |handle: Handle| {
        for name in [DEVICE_V4, DEVICE_V6] {
            if let Some(link) = link(&handle, name).await?
                && !kept.contains(&link.header.index)
            {
                delete(&handle, name, link.header.index).await?;
            }
        }
        Ok(())
    })
    .await
}

fn device_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { DEVICE_V4 } else { DEVICE_V6 }
}

/// As flannel: there are no routers on the overlay, and a pod must not pose as one. A host without IPv6 has no such setting.
fn refuse_router_advertisements(device: &str) {
    let setting = Path::new("/proc/sys/net/ipv6/conf").join(device).join("accept_ra");
    if let Err(error) = fs::write(setting, "0") {
        debug!(%error, device, "Router advertisements could not be switched off.");
    }
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    })
}

fn ip(message: &AddressMessage) -> Option<IpAddr> {
    let address = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    };
    message.attributes.iter().find_map(address)
}

fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { Ipv4Addr::BITS as u8 } else { Ipv6Addr::BITS as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::Family,
        test_namespace::{in_namespace, sh},
    };

    async fn host() -> Underlay {
        sh("ip link add eth0 type veth peer name other
            ip address add 10.9.0.2/24 dev eth0; ip address add fd09::2/64 dev eth0 nodad
            ip link set eth0 up; ip link set other up")
        .await;
        Underlay::of_interface("eth0", Family::V4).await.unwrap()
    }

    fn vxlan(underlay: &Underlay, cidr: &str) -> Vxlan {
        Vxlan::new(underlay.clone(), cidr.parse().unwrap(), "node-1")
    }

    #[test]
    fn a_device_is_made_kept_and_removed() {
        in_namespace(async || {
            let underlay = host().await;
            let vxlan = vxlan(&underlay, "10.42.0.0/24");
            let device = match vxlan.ensure().await {
                Err(OverlayError::Unsupported) => return println!("skipped: this kernel has no VXLAN"),
                device => device.unwrap(),
            };
            assert_eq!((device.name, device.mtu), ("flannel.1", 1450));
            let shown = sh("ip -details address show flannel.1").await;
            for expected in
                ["vxlan id 1 local 10.9.0.2 dev eth0", "dstport 8472", "nolearning", "inet 10.42.0.0/32", "UP"]
            {
                assert!(shown.contains(expected), "{expected} is not in {shown}");
            }
            assert_eq!(vxlan.ensure().await.unwrap(), device, "the same device, not a new one");
            remove_but(&[]).await.unwrap();
            remove_but(&[]).await.unwrap();
            assert!(!sh("ip link").await.contains("flannel"));
        });
    }

    #[test]
    fn a_wrong_device_is_replaced_and_a_former_address_goes() {
        in_namespace(async || {
            let underlay = host().await;
            sh("ip link add flannel.1 type veth peer name x").await;
            let first = match vxlan(&underlay, "10.42.0.0/24").ensure().await {
                Err(OverlayError::Unsupported) => return println!("skipped: this kernel has no VXLAN"),
                device => device.unwrap(),
            };
            let second = vxlan(&underlay, "10.42.7.0/24").ensure().await.unwrap();
            assert_eq!(first.index, second.index);
            let shown = sh("ip -details address show flannel.1").await;
            assert!(shown.contains("10.42.7.0/32") && !shown.contains("10.42.0.0/32"), "{shown}");
            let taken = sh("ip link set flannel.1 name vxlan9").await;
            assert_eq!(taken, "");
            let error = vxlan(&underlay, "10.42.7.0/24").ensure().await.unwrap_err();
            assert!(matches!(error, OverlayError::Taken), "{error:?}");
        });
    }

    #[test]
    fn ipv6_has_a_device_of_its_own() {
        in_namespace(async || {
            host().await;
            let underlay = Underlay::of_interface("eth0", Family::V6).await.unwrap();
            let device = match vxlan(&underlay, "fd42::/64").ensure().await {
                Err(OverlayError::Unsupported) => return println!("skipped: this kernel has no VXLAN"),
                device => device.unwrap(),
            };
            assert_eq!((device.name, device.mtu), ("flannel-v6.1", 1430));
            assert!(sh("ip address show flannel-v6.1").await.contains("inet6 fd42::/128"));
            remove_but(&[]).await.unwrap();
        });
    }
}
