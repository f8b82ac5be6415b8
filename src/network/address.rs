//! The node's own address, and the interface it lies on.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use crate::netlink::{NetlinkError, converse};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// All of the host's addresses, on whatever interface.
pub(crate) async fn all() -> Result<BTreeSet<IpAddr>, NetlinkError> {
    converse(async |handle: Handle| {
        let found = list(&handle).await?;
        Ok(found.iter().filter_map(address).map(|address| address.ip).collect())
    })
    .await
}

/// What carries traffic between nodes: one of the host's interfaces and the node's address on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The node's address.
    pub address: IpAddr,
    /// The interface's name.
    pub interface: String,
    /// The kernel's index of it.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Underlay {
    /// Where the default route with the lowest metric leaves: what k3s takes for the node's address unless told otherwise.
    ///
    /// # Errors
    /// There is no default route of this family, its interface has no usable address, or the kernel does not answer.
    pub async fn of_default_route(family: Family) -> Result<Self, AddressError> {
        Host::read(family).await?.default_route(family)
    }

    /// The first address of the interface called `name` (`--flannel-iface`).
    ///
    /// # Errors
    /// There is no such interface, it has no usable address of this family, or the kernel does not answer.
    pub async fn of_interface(name: &str, family: Family) -> Result<Self, AddressError> {
        Host::read(family).await?.named(name, family)
    }

    /// The interface that has `address` (`--node-ip`).
    ///
    /// # Errors
    /// No interface has it, or the kernel does not answer.
    pub async fn of_address(address: IpAddr) -> Result<Self, AddressError> {
        Host::read(Family::of(address)).await?.having(address)
    }
}

/// Why no address was found to be the node's.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Nothing says which of the host's addresses others reach it by.
    #[error("there is no {} default route to tell the node's address by: add one, or set --node-ip", .family.name())]
    NoDefaultRoute {
        /// The family asked for.
        family: Family,
    },
    /// No such interface.
    #[error("there is no network interface called {name}: `ip link` lists those that are there")]
    NoInterface {
        /// The name asked for.
        name: String,
    },
    /// An interface with nothing but loopback and link-local addresses, or none.
    #[error(
        "interface {name} has no {} address that other nodes can reach (loopback and link-local ones cannot be reached): \
         give it one, or set --node-ip", .family.name()
    )]
    NoAddress {
        /// The interface.
        name: String,
        /// The family asked for.
        family: Family,
    },
    /// An address that other nodes cannot reach by its nature.
    #[error("{address} cannot be the node's address, as {what}: set --node-ip to one that other nodes reach")]
    Unreachable {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
    /// An address the host does not have.
    #[error("no network interface has the address {address}: `ip address` lists those that are there")]
    NotOurs {
        /// The address.
        address: IpAddr,
    },
    /// The kernel did not answer.
    #[error("the host's addresses could not be read")]
    Netlink(#[from] NetlinkError),
}

/// The host's interfaces, their addresses and its default routes, of one family.
struct Host {
    interfaces: Vec<Interface>,
    default_routes: Vec<DefaultRoute>,
}

struct Interface {
    name: String,
    index: u32,
    mtu: u32,
    addresses: Vec<Address>,
}

struct Address {
    ip: IpAddr,
    /// Neither on its way out nor there for privacy only.
    lasting: bool,
    global: bool,
}

struct DefaultRoute {
    interface: u32,
    source: Option<IpAddr>,
    metric: u32,
}

impl Host {
    async fn read(family: Family) -> Result<Self, NetlinkError> {
        converse(async |handle: Handle| {
            let links = handle.link().get().execute();
            let links: Vec<LinkMessage> =
                links.try_collect().await.map_err(|error| NetlinkError::new("list interfaces", error))?;
            let addresses = list(&handle).await?;
            let any = match family {
                Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
                Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
            };
            let routes = handle.route().get(any).execute();
            let routes: Vec<RouteMessage> =
                routes.try_collect().await.map_err(|error| NetlinkError::new("list routes", error))?;
            let interfaces = links.iter().filter_map(|link| interface(link, &addresses)).collect();
            Ok(Self { interfaces, default_routes: routes.iter().filter_map(default_route).collect() })
        })
        .await
    }

    fn default_route(&self, family: Family) -> Result<Underlay, AddressError> {
        let route = self.default_routes.iter().min_by_key(|route| route.metric);
        let found = route.and_then(|route| {
            let interface = self.interfaces.iter().find(|interface| interface.index == route.interface)?;
            Some((route, interface))
        });
        let Some((route, interface)) = found else { return Err(AddressError::NoDefaultRoute { family }) };
        match route.source.filter(|source| unreachable_because(*source).is_none()) {
            Some(source) => Ok(interface.underlay(source)),
            None => interface.first(family),
        }
    }

    fn named(&self, name: &str, family: Family) -> Result<Underlay, AddressError> {
        let interface = self.interfaces.iter().find(|interface| interface.name == name);
        interface.ok_or_else(|| AddressError::NoInterface { name: name.into() })?.first(family)
    }

    fn having(&self, address: IpAddr) -> Result<Underlay, AddressError> {
        if let Some(what) = unreachable_because(address) {
            return Err(AddressError::Unreachable { address, what });
        }
        let has = |interface: &&Interface| interface.addresses.iter().any(|own| own.ip == address);
        let interface = self.interfaces.iter().find(has).ok_or(AddressError::NotOurs { address })?;
        Ok(interface.underlay(address))
    }
}

impl Interface {
    fn first(&self, family: Family) -> Result<Underlay, AddressError> {
        let usable = |address: &&Address| {
            Family::of(address.ip) == family && address.global && unreachable_because(address.ip).is_none()
        };
        let mut usable: Vec<_> = self.addresses.iter().filter(usable).collect();
        usable.sort_by_key(|address| !address.lasting);
        let first = usable.first().ok_or_else(|| AddressError::NoAddress { name: self.name.clone(), family })?;
        Ok(self.underlay(first.ip))
    }

    fn underlay(&self, address: IpAddr) -> Underlay {
        Underlay { address, interface: self.name.clone(), index: self.index, mtu: self.mtu }
    }
}

/// What keeps other nodes from reaching `address` wherever it is configured. kubelet refuses the same.
fn unreachable_because(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    match () {
        () if address.is_loopback() => Some("it is a loopback address"),
        () if link_local => Some("it is a link-local address"),
        () if address.is_multicast() => Some("it is a multicast address"),
        () if address.is_unspecified() => Some("it stands for any address"),
        () => None,
    }
}

fn interface(link: &LinkMessage, addresses: &[AddressMessage]) -> Option<Interface> {
    let mut name = None;
    let mut mtu = 0;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Mtu(value) => mtu = *value,
            _ => {}
        }
    }
    let index = link.header.index;
    let own = addresses.iter().filter(|message| message.header.index == index);
    Some(Interface { name: name?, index, mtu, addresses: own.filter_map(address).collect() })
}

async fn list(handle: &Handle) -> Result<Vec<AddressMessage>, NetlinkError> {
    let addresses = handle.address().get().execute();
    addresses.try_collect().await.map_err(|error| NetlinkError::new("list addresses", error))
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut peer = None;
    let mut local = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(value) => flags = *value,
            _ => {}
        }
    }
    let passing =
        AddressFlags::Deprecated | AddressFlags::Secondary | AddressFlags::Tentative | AddressFlags::Dadfailed;
    Some(Address {
        // On a point-to-point link the other attribute is the peer's.
        ip: local.or(peer)?,
        lasting: !flags.intersects(passing),
        global: message.header.scope == AddressScope::Universe,
    })
}

fn default_route(route: &RouteMessage) -> Option<DefaultRoute> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut interface = None;
    let mut source = None;
    let mut metric = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => interface = interface.or(hops.first().map(|hop| hop.interface_index)),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(IpAddr::V4(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some(IpAddr::V6(*ip)),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(table) if *table != MAIN_TABLE => return None,
            _ => {}
        }
    }
    Some(DefaultRoute { interface: interface?, source, metric })
}

/// `RT_TABLE_MAIN`: routes of other tables serve policies, not the host at large.
const MAIN_TABLE: u32 = 254;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    fn interface(name: &str, index: u32, addresses: &[&str]) -> Interface {
        let address = |ip: &&str| Address { ip: ip.parse().unwrap(), lasting: true, global: true };
        Interface { name: name.into(), index, mtu: 1500, addresses: addresses.iter().map(address).collect() }
    }

    fn host(interfaces: Vec<Interface>, routes: &[(u32, u32)]) -> Host {
        let route = |&(interface, metric): &(u32, u32)| DefaultRoute { interface, source: None, metric };
        Host { interfaces, default_routes: routes.iter().map(route).collect() }
    }

    #[test]
    fn the_lowest_metric_wins() {
        let host = host(
            vec![interface("wlan0", 2, &["192.168.1.5"]), interface("eth0", 3, &["10.0.0.5"])],
            &[(2, 600), (3, 100)],
        );
        assert_eq!(host.default_route(Family::V4).unwrap().address.to_string(), "10.0.0.5");
    }

    #[test]
    fn a_named_interface_needs_an_address_that_others_reach() {
        let host = host(vec![interface("lo", 1, &["127.0.0.1"]), interface("eth0", 2, &["169.254.7.7"])], &[]);
        for name in ["lo", "eth0"] {
            let error = host.named(name, Family::V4).unwrap_err().to_string();
            assert!(error.starts_with(&format!("interface {name} has no IPv4 address")), "{error}");
        }
        assert_eq!(
            host.named("eth1", Family::V4).unwrap_err().to_string(),
            "there is no network interface called eth1: `ip link` lists those that are there"
        );
    }

    #[test]
    fn a_deprecated_address_is_the_last_choice() {
        let mut eth0 = interface("eth0", 2, &["fd00::1", "fd00::2"]);
        eth0.addresses[0].lasting = false;
        let host = host(vec![eth0], &[]);
        assert_eq!(host.named("eth0", Family::V6).unwrap().address.to_string(), "fd00::2");
    }

    #[test]
    fn loopback_and_foreign_addresses_are_refused() {
        let host = host(vec![interface("lo", 1, &["127.0.0.1"])], &[]);
        let refused = |ip: &str| host.having(ip.parse().unwrap()).unwrap_err().to_string();
        assert!(refused("127.0.0.1").contains("a loopback address"));
        assert!(refused("fe80::1").contains("a link-local address"));
        assert!(refused("10.1.2.3").starts_with("no network interface has the address 10.1.2.3"));
        assert!(host.default_route(Family::V4).unwrap_err().to_string().contains("set --node-ip"));
    }

    #[test]
    fn the_kernels_answers_are_understood() {
        in_namespace(async || {
            assert!(matches!(
                Underlay::of_default_route(Family::V4).await,
                Err(AddressError::NoDefaultRoute { family: Family::V4 })
            ));
            sh("ip link add eth0 mtu 1400 type veth peer name other
                ip address add 10.9.0.2/24 dev eth0
                ip link set eth0 up; ip link set other up
                ip route add default via 10.9.0.1")
            .await;
            let underlay = Underlay::of_default_route(Family::V4).await.unwrap();
            assert_eq!((underlay.address.to_string().as_str(), underlay.interface.as_str()), ("10.9.0.2", "eth0"));
            assert_eq!(underlay.mtu, 1400);
            assert_eq!(Underlay::of_interface("eth0", Family::V4).await.unwrap(), underlay);
            assert_eq!(Underlay::of_address("10.9.0.2".parse().unwrap()).await.unwrap(), underlay);
            sh("ip route replace default via 10.9.0.1 src 10.9.0.2 metric 5; ip address add 10.9.0.3/24 dev eth0")
                .await;
            assert_eq!(Underlay::of_default_route(Family::V4).await.unwrap(), underlay);
        });
    }
}
