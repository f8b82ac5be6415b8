//! The cluster's address plan.

use std::{
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    error::{Error, Origin},
    grammar::is_dns_subdomain,
    values::{Given, Values},
};

/// Address ranges and names that every node of a cluster agrees on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetwork {
    /// Pod ranges, one per address family, the primary first (`--cluster-cidr`).
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges, families in the same order as `cluster_cidrs` (`--service-cidr`).
    pub service_cidrs: Vec<IpNet>,
    /// Ports for NodePort services, both ends included (`--service-node-port-range`).
    pub node_ports: PortRange,
    /// Addresses of the cluster DNS service, one per family (`--cluster-dns`); the tenth of each service range unless given.
    pub cluster_dns: Vec<IpAddr>,
    /// The DNS domain, without a trailing dot (`--cluster-domain`).
    pub cluster_domain: String,
    /// How pod traffic travels between nodes (`--flannel-backend`).
    pub overlay: Overlay,
    /// What pods send out of the cluster by IPv6 takes the node's address (`--flannel-ipv6-masq`).
    pub masquerade_ipv6: bool,
    /// Nodes reach each other by their external addresses (`--flannel-external-ip`).
    pub overlay_external: bool,
}

impl ClusterNetwork {
    /// The first address of the primary service range: the `kubernetes` Service.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        nth_address(&self.service_cidrs[0], 1)
    }

    /// The plan in `values`. `node_mask` is the prefix length of one node's pod range; `own_dns` says that the packaged DNS is
    /// left out, so that its address may lie anywhere.
    pub(crate) fn from_values(values: &Values, node_mask: u8, own_dns: bool) -> Result<Self, Error> {
        let (cluster, cluster_cidr) = range(values, "cluster-cidr")?;
        let (service, service_cidr) = range(values, "service-cidr")?;
        check_cluster_size(&cluster, cluster_cidr, node_mask)?;
        if service_cidr.prefix_len() < LARGEST_SERVICE_RANGE || service_cidr.prefix_len() > SMALLEST_SERVICE_RANGE {
            let problem = format!(
                "{service_cidr} is not between /{LARGEST_SERVICE_RANGE} and /{SMALLEST_SERVICE_RANGE}, as kube-apiserver \
                 wants it; choose such a range"
            );
            return Err(service.invalid(problem));
        }
        if overlap(cluster_cidr, service_cidr) {
            let (blamed, other, range) = if cluster.place.origin == Origin::Default {
                (&service, &cluster, "cluster")
            } else {
                (&cluster, &service, "service")
            };
            let (own, theirs) =
                if range == "cluster" { (service_cidr, cluster_cidr) } else { (cluster_cidr, service_cidr) };
            let problem = format!("{own} overlaps the {range} range {theirs} ({}); choose ranges apart", other.place);
            return Err(blamed.invalid(problem));
        }
        Ok(Self {
            cluster_cidrs: vec![cluster_cidr.into()],
            service_cidrs: vec![service_cidr.into()],
            node_ports: values.text("service-node-port-range").parse(str::parse)?,
            cluster_dns: vec![cluster_dns(values, &service, service_cidr, own_dns)?.into()],
            cluster_domain: values.text("cluster-domain").parse(|text| {
                let domain = text.strip_suffix('.').unwrap_or(text);
                let problem = || format!("`{text}` is not a DNS domain; write one such as cluster.local");
                is_dns_subdomain(domain).then(|| domain.to_owned()).ok_or_else(problem)
            })?,
            overlay: match values.is_on("no-flannel") {
                true => Overlay::None,
                false => values.text("flannel-backend").parse(str::parse)?,
            },
            masquerade_ipv6: values.is_on("flannel-ipv6-masq"),
            overlay_external: values.is_on("flannel-external-ip"),
        })
    }

    /// Refuses an address of the host that lies in a range of the cluster: packets for it would not reach it.
    pub(crate) fn refuse_inside(&self, given: &Given, address: IpAddr) -> Result<(), Error> {
        let ranges = [("cluster", &self.cluster_cidrs), ("service", &self.service_cidrs)];
        for (name, ranges) in ranges {
            if let Some(range) = ranges.iter().find(|range| range.contains(&address)) {
                let problem = format!("{address} lies in the {name} range {range}; choose a {name} range apart");
                return Err(given.invalid(problem));
            }
        }
        Ok(())
    }
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port, at least `first`.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` is in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// `30000-32767`, `30000+2767` or a single port, as Kubernetes writes ranges.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let range = match (text.split_once('-'), text.split_once('+')) {
            (Some((first, last)), _) => port(first).zip(port(last)),
            (None, Some((first, count))) => port(first).and_then(|first| {
                let count = count.trim().parse().ok()?;
                Some((first, first.checked_add(count)?))
            }),
            (None, None) => port(text).map(|port| (port, port)),
        };
        range
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| Self { first, last })
            .ok_or_else(|| format!("`{text}` is not a range of ports; write it as 30000-32767"))
    }
}

/// The overlay that connects the pods of different nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// VXLAN, VNI 1, UDP port 8472, device `flannel.1`.
    Vxlan,
    /// Plain routes by way of the nodes, which have to be on one network.
    HostGw,
    /// None of ours: the user brings a CNI plugin.
    None,
}

impl Overlay {
    /// As `--flannel-backend` and the server's configuration for agents name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::None => "none",
        }
    }
}

impl FromStr for Overlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Vxlan, Self::HostGw, Self::None].into_iter().find(|overlay| overlay.name() == text);
        found.ok_or_else(|| format!("`{text}` is not a backend; use vxlan, host-gw or none"))
    }
}

/// The address `offset` past the start of `range`; `offset` lies within every range that validation lets through.
pub(crate) fn nth_address(range: &IpNet, offset: u32) -> IpAddr {
    match range.network() {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + offset).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + u128::from(offset)).into()),
    }
}

/// An address that a host may have and others may reach.
pub(crate) fn host_address(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(format!("{address} is not an address that other hosts can reach; give one of the host's own"));
    }
    Ok(address.into())
}

/// An address of the family that this version serves.
pub(crate) fn address(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(IpAddr::V4(address)) => Ok(address),
        Ok(IpAddr::V6(_)) => Err(format!("IPv6 ({text}) is not served by this version; give an IPv4 address")),
        Err(_) => Err(format!("`{text}` is not an IPv4 address; write it as 192.0.2.10")),
    }
}

pub(crate) fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is not a port; write a number from 1 to 65535"))
}

/// The one range in a list flag, and who gave it.
fn range(values: &Values, name: &'static str) -> Result<(Given, Ipv4Net), Error> {
    let mut items = values.items(name);
    let given = if items.is_empty() { values.text(name) } else { items.remove(0) };
    let range = given.parse(|text| match text.parse::<IpNet>() {
        Ok(IpNet::V4(range)) => Ok(range.trunc()),
        Ok(IpNet::V6(_)) => Err(format!("IPv6 ({text}) is not served by this version; give an IPv4 range")),
        Err(_) => Err(format!("`{text}` is not an address range; write it as 10.42.0.0/16")),
    })?;
    if let Some(second) = items.first() {
        second.parse(|text| match text.parse::<IpNet>() {
            Ok(IpNet::V6(_)) => Err(format!("IPv6 ({text}) is not served by this version; give an IPv4 range alone")),
            _ => Err(format!("`{text}` is a second range; give one")),
        })?;
    }
    if let Some(reserved) = RESERVED_RANGES.iter().find(|reserved| overlap(range, **reserved)) {
        return Err(
            given.invalid(format!("{range} overlaps {reserved}, which hosts use themselves; choose a private range"))
        );
    }
    Ok((given, range))
}

/// kube-controller-manager refuses ranges which hold no node's range, or more than 2^16 of them.
fn check_cluster_size(given: &Given, range: Ipv4Net, node_mask: u8) -> Result<(), Error> {
    let problem = if range.prefix_len() > node_mask {
        format!("{range} has no room for a node's /{node_mask}; choose a range of /{node_mask} or larger")
    } else if node_mask - range.prefix_len() > 16 {
        let largest = node_mask - 16;
        format!("{range} holds more than 65536 nodes' ranges of /{node_mask}; choose one of /{largest} or smaller")
    } else {
        return Ok(());
    };
    Err(given.invalid(problem))
}

fn cluster_dns(values: &Values, service: &Given, range: Ipv4Net, own_dns: bool) -> Result<Ipv4Addr, Error> {
    let mut items = values.items("cluster-dns").into_iter();
    let Some(given) = items.next() else {
        let tenth = Ipv4Addr::from(u32::from(range.network()) + 10);
        let problem = || {
            service.invalid(format!(
                "{range} has no tenth address for the cluster's DNS; choose a larger range or give --cluster-dns"
            ))
        };
        return if range.contains(&tenth) { Ok(tenth) } else { Err(problem()) };
    };
    if let Some(second) = items.next() {
        return Err(second.invalid(format!("`{}` is a second address; give one", second.text)));
    }
    let dns = given.parse(address)?;
    let first = Ipv4Addr::from(u32::from(range.network()) + 1);
    if dns == first {
        Err(given.invalid(format!("{dns} is the address of the kubernetes Service; choose another one in {range}")))
    } else if !own_dns && (!range.contains(&dns) || dns == range.network() || dns == range.broadcast()) {
        let problem = format!(
            "{dns} is not in the service range {range}; choose an address in it, or bring a DNS of yours with --disable=coredns"
        );
        Err(given.invalid(problem))
    } else {
        Ok(dns)
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// kube-apiserver takes no larger IPv4 range than this.
const LARGEST_SERVICE_RANGE: u8 = 12;
/// kube-apiserver wants at least eight addresses.
const SMALLEST_SERVICE_RANGE: u8 = 29;

/// "This" network, loopback, link-local, and multicast with everything above.
const RESERVED_RANGES: &[Ipv4Net] = &[
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_as_kubernetes_writes_them() {
        let range = |first, last| Ok(PortRange { first, last });
        assert_eq!("30000-32767".parse(), range(30000, 32767));
        assert_eq!("30000+2767".parse(), range(30000, 32767));
        assert_eq!("8080".parse(), range(8080, 8080));
        for wrong in ["", "a-b", "0-10", "20-10", "1-70000", "65535+1", "1-2-3"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong:?}");
        }
    }
}
