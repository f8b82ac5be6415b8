//! The overlay's part of the kernel's tables, read and changed over netlink.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType},
    },
};

use super::{
    mac::Mac,
    tables::{Change, Route, Tables},
};
use crate::netlink::NetlinkError;

/// What of the kernel's tables is ours, in one family.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// Pods of all nodes: a gateway's route into it is ours...
    pub(super) cluster: IpNet,
    /// ... if it leaves by one of these devices.
    pub(super) devices: Vec<u32>,
    /// The overlay device, whose lasting neighbours and forwarding entries are ours.
    pub(super) overlay: Option<u32>,
}

/// Reads what there is.
pub(super) async fn read(handle: &Handle, scope: &Scope) -> Result<Tables, NetlinkError> {
    let mut tables = Tables::default();
    let family = if scope.cluster.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut any = RouteMessage::default();
    any.header.address_family = family;
    let routes = handle.route().get(any).execute().try_collect::<Vec<_>>().await;
    let routes = routes.map_err(|error| NetlinkError::new("list routes", error))?;
    tables.routes.extend(routes.iter().filter_map(|message| route(message, scope)));
    if let Some(device) = scope.overlay {
        for message in neighbours(handle, family, device).await? {
            if message.header.state == NeighbourState::Permanent
                && let (Some(hop), Some(mac)) = parts(&message)
            {
                tables.neighbours.insert(hop, mac);
            }
        }
        for message in neighbours(handle, AddressFamily::Bridge, device).await? {
            if message.header.flags.contains(NeighbourFlags::Own)
                && let (Some(address), Some(mac)) = parts(&message)
                && mac.is_unicast()
            {
                tables.forwarding.insert(mac, address);
            }
        }
    }
    Ok(tables)
}

/// Takes one step. Removing what is not there is none.
pub(super) async fn apply(handle: &Handle, scope: &Scope, change: Change) -> Result<(), NetlinkError> {
    let device = scope.overlay.unwrap_or_default();
    let neighbours = handle.neighbours();
    match change {
        Change::SetForwarding(mac, address) => {
            let entry = neighbours.add_bridge(device, mac.bytes()).destination(address).flags(NeighbourFlags::Own);
            let set = entry.replace().execute().await;
            set.map_err(|error| NetlinkError::new(format!("forward frames for {mac} to {address}"), error))
        }
        Change::SetNeighbour(hop, mac) => {
            let set = neighbours.add(device, hop).link_layer_address(mac.bytes()).replace().execute().await;
            set.map_err(|error| NetlinkError::new(format!("make {mac} the hardware address of {hop}"), error))
        }
        Change::SetRoute(route) => {
            let set = handle.route().add(route.message()).replace().execute().await;
            set.map_err(|error| NetlinkError::new(format!("route {} by way of {}", route.pods, route.gateway), error))
        }
        Change::RemoveRoute(route) => {
            let mut message = route.message();
            // Whoever made it.
            message.header.protocol = RouteProtocol::Unspec;
            let removed = handle.route().del(message).execute().await;
            gone(removed, || format!("remove the route to {} by way of {}", route.pods, route.gateway))
        }
        Change::RemoveNeighbour(hop) => {
            let entry = neighbours.add(device, hop).message_mut().clone();
            gone(neighbours.del(entry).execute().await, || format!("forget the hardware address of {hop}"))
        }
        Change::RemoveForwarding(mac) => {
            let entry = neighbours.add_bridge(device, mac.bytes()).flags(NeighbourFlags::Own).message_mut().clone();
            gone(neighbours.del(entry).execute().await, || format!("stop forwarding frames for {mac}"))
        }
    }
}

/// The route in `message` if it is ours: kernel's own routes and those of other tables are not.
fn route(message: &RouteMessage, scope: &Scope) -> Option<Route> {
    if message.header.kind != RouteType::Unicast || message.header.protocol == RouteProtocol::Kernel {
        return None;
    }
    let (mut destination, mut gateway, mut device, mut metric) = (None, None, None, 0);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of_route(address),
            RouteAttribute::Gateway(address) => gateway = ip_of_route(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    let pods = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
    let device = device.filter(|device| scope.devices.contains(device))?;
    let onlink = message.header.flags.contains(RouteFlags::Onlink);
    (table == u32::from(RouteHeader::RT_TABLE_MAIN) && scope.cluster.contains(&pods)).then_some(Route {
        pods,
        gateway: gateway?,
        device,
        onlink,
        metric,
    })
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessageBuilder::<IpAddr>::new().output_interface(self.device).build();
        message.header.address_family =
            if self.pods.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = self.pods.prefix_len();
        if self.onlink {
            message.header.flags.insert(RouteFlags::Onlink);
        }
        message.attributes.extend([
            RouteAttribute::Destination(self.pods.network().into()),
            RouteAttribute::Gateway(self.gateway.into()),
            RouteAttribute::Priority(self.metric),
        ]);
        message
    }
}

/// The entries of `device` in the neighbour tables of `family`; those of bridges' family are forwarding entries.
async fn neighbours(
    handle: &Handle,
    family: AddressFamily,
    device: u32,
) -> Result<Vec<NeighbourMessage>, NetlinkError> {
    let all = handle.neighbours().get().set_address_family(family).execute().try_collect::<Vec<_>>().await;
    let mut all = all.map_err(|error| NetlinkError::new("list neighbours", error))?;
    all.retain(|message| message.header.ifindex == device);
    Ok(all)
}

fn parts(message: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = ip_of_neighbour(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    (address, mac)
}

fn ip_of_route(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// In bridges' family an address tells its own by its length alone.
fn ip_of_neighbour(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

fn gone(removed: Result<(), rtnetlink::Error>, doing: impl FnOnce() -> String) -> Result<(), NetlinkError> {
    match removed.map_err(|error| NetlinkError::new(doing(), error)) {
        Err(error) if [Errno::ESRCH, Errno::ENOENT].iter().any(|errno| error.errno() == Some(*errno as i32)) => Ok(()),
        removed => removed,
    }
}
