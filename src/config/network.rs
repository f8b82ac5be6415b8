//! The cluster's address plan.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

/// Where this host reaches what listens at `bound`: by loopback if that is everywhere.
pub fn reached_at(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

impl ClusterNetwork {
    /// The first address of the primary service range: the `kubernetes` Service.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        nth_address(&self.service_cidrs[0], 1)
    }

    /// By which of its addresses a node is reached, the best first.
    pub fn preferred_address_types(&self) -> &'static str {
        if self.overlay_external { "ExternalIP,InternalIP,Hostname" } else { "InternalIP,ExternalIP,Hostname" }
    }

    /// The plan in `values`. `masks` are the prefix lengths of one node's pod ranges; `own_dns` says that the packaged DNS is left out, so
    /// that its address may lie anywhere.
    pub(crate) fn from_values(values: &Values, masks: NodeMasks, own_dns: bool) -> Result<Self, Error> {
        let cluster = ranges(values, "cluster-cidr")?;
        let services = ranges(values, "service-cidr")?;
        if services.len() != cluster.len() {
            let (fewer, more) =
                if services.len() < cluster.len() { (&services, &cluster) } else { (&cluster, &services) };
            let (fewer, more) = (&fewer[0].given, &more[0].given);
            let blamed = if fewer.place.origin == Origin::Default { more } else { fewer };
            let problem = "pods and Services have to be of the same families; add an IPv6 range to";
            return Err(blamed.invalid(format!("{problem} --{}", fewer.place.flag)));
        }
        for (cluster, service) in cluster.iter().zip(&services) {
            cluster.check_for_pods(masks)?;
            service.check_for_services()?;
            cluster.check_apart(service)?;
        }
        Ok(Self {
            cluster_dns: cluster_dns(values, &services, own_dns)?,
            cluster_cidrs: cluster.iter().map(|range| range.net).collect(),
            service_cidrs: services.iter().map(|range| range.net).collect(),
            node_ports: values.text("service-node-port-range").parse(str::parse)?,
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

    /// Refuses a node without an address for each family that pods have: they could not be reached there.
    pub(crate) fn refuse_missing(&self, values: &Values, node_ips: &[IpAddr]) -> Result<(), Error> {
        let has = |range: &IpNet| node_ips.iter().any(|ip| ip.is_ipv4() == range.addr().is_ipv4());
        if self.cluster_cidrs.len() == 1 || self.cluster_cidrs.iter().all(has) {
            return Ok(());
        }
        let problem = "pods have addresses of both families, so their node needs one of each; give both with --node-ip";
        Err(values.text("cluster-cidr").invalid(problem))
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
    let address: IpAddr =
        text.parse().map_err(|_| format!("`{text}` is not an address; write it as 192.0.2.10 or 2001:db8::10"))?;
    let of_family = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if of_family || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(format!("{address} is not an address that other hosts can reach; give one of the host's own"));
    }
    Ok(address)
}

/// An address of the family that the API is served in.
pub(crate) fn address(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(IpAddr::V4(address)) => Ok(address),
        Ok(IpAddr::V6(_)) => Err(format!("IPv6 ({text}) is not served here by this version; give an IPv4 address")),
        Err(_) => Err(format!("`{text}` is not an IPv4 address; write it as 192.0.2.10")),
    }
}

/// The prefix lengths of one node's pod ranges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeMasks {
    pub(crate) v4: u8,
    pub(crate) v6: u8,
}

/// A range, and who gave it.
struct Range {
    given: Given,
    net: IpNet,
}

/// The ranges in a list flag: one of IPv4, and one of IPv6 after it if there are two.
fn ranges(values: &Values, name: &'static str) -> Result<Vec<Range>, Error> {
    let mut items = values.items(name);
    if items.is_empty() {
        items.push(values.text(name));
    }
    let mut ranges = Vec::<Range>::new();
    for given in items {
        let net = given.parse(|text| {
            let net: IpNet = text
                .parse()
                .map_err(|_| format!("`{text}` is not an address range; write it as 10.42.0.0/16"))?;
            match (net, ranges.len()) {
                (IpNet::V4(_), 0) | (IpNet::V6(_), 1) => Ok(net.trunc()),
                (IpNet::V6(_), 0) => Err(format!(
                    "a cluster without IPv4, or with IPv6 ({text}) first, is not served by this version; give an IPv4 range first"
                )),
                _ => Err(format!("`{text}` is one range too many; give an IPv4 range, and an IPv6 range after it if there are to be two")),
            }
        })?;
        if let Some(reserved) = reserved_ranges().find(|reserved| overlap(&net, reserved)) {
            let problem = format!("{net} overlaps {reserved}, which hosts use themselves; choose a private range");
            return Err(given.invalid(problem));
        }
        ranges.push(Range { given, net });
    }
    Ok(ranges)
}

impl Range {
    /// kube-controller-manager refuses ranges which hold no node's range, or more than 2^16 of them.
    fn check_for_pods(&self, masks: NodeMasks) -> Result<(), Error> {
        let net = self.net;
        let node = if net.addr().is_ipv4() { masks.v4 } else { masks.v6 };
        let problem = if net.prefix_len() > node {
            format!("{net} has no room for a node's /{node}; choose a range of /{node} or larger")
        } else if node - net.prefix_len() > 16 {
            format!("{net} holds more than 65536 nodes' ranges of /{node}; choose one of /{} or smaller", node - 16)
        } else {
            return Ok(());
        };
        Err(self.given.invalid(problem))
    }

    /// kube-apiserver takes no range larger than 2^20 addresses, and none of less than eight.
    fn check_for_services(&self) -> Result<(), Error> {
        let (largest, smallest) = (self.net.max_prefix_len() - 20, self.net.max_prefix_len() - 3);
        if (largest..=smallest).contains(&self.net.prefix_len()) {
            return Ok(());
        }
        let problem = format!(
            "{} is not between /{largest} and /{smallest}, as kube-apiserver wants it; choose such a range",
            self.net
        );
        Err(self.given.invalid(problem))
    }

    /// The pods' range, here, has to be apart from that of Services. Blamed is what somebody chose.
    fn check_apart(&self, service: &Self) -> Result<(), Error> {
        if !overlap(&self.net, &service.net) {
            return Ok(());
        }
        let (blamed, other, range) = if self.given.place.origin == Origin::Default {
            (service, self, "cluster")
        } else {
            (self, service, "service")
        };
        let problem = format!(
            "{} overlaps the {range} range {} ({}); choose ranges apart",
            blamed.net, other.net, other.given.place
        );
        Err(blamed.given.invalid(problem))
    }
}

/// The addresses of the cluster's DNS: as given, at most one per family, else the tenth of each service range.
fn cluster_dns(values: &Values, services: &[Range], own_dns: bool) -> Result<Vec<IpAddr>, Error> {
    let items = values.items("cluster-dns");
    if items.is_empty() {
        return services.iter().map(tenth_address).collect();
    }
    let mut all = Vec::<IpAddr>::new();
    for given in items {
        let dns: IpAddr = given
            .parse(|text| text.parse().map_err(|_| format!("`{text}` is not an address; write it as 10.43.0.10")))?;
        let service = services.iter().find(|service| service.net.addr().is_ipv4() == dns.is_ipv4());
        let Some(service) = service.map(|service| service.net) else {
            return Err(given.invalid(format!("Services have no addresses of the family of {dns}; leave it out")));
        };
        let problem = if all.iter().any(|other| other.is_ipv4() == dns.is_ipv4()) {
            format!("`{}` is a second address; give one", given.text)
        } else if dns == nth_address(&service, 1) {
            format!("{dns} is the address of the kubernetes Service; choose another one in {service}")
        } else if !own_dns && (!service.contains(&dns) || dns == service.network() || dns == service.broadcast()) {
            format!(
                "{dns} is not in the service range {service}; choose an address in it, or bring a DNS of yours with --disable=coredns"
            )
        } else {
            all.push(dns);
            continue;
        };
        return Err(given.invalid(problem));
    }
    Ok(all)
}

fn tenth_address(service: &Range) -> Result<IpAddr, Error> {
    let tenth = nth_address(&service.net, 10);
    let problem = || {
        format!(
            "{} has no tenth address for the cluster's DNS; choose a larger range or give --cluster-dns",
            service.net
        )
    };
    service.net.contains(&tenth).then_some(tenth).ok_or_else(|| service.given.invalid(problem()))
}

pub(crate) fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is not a port; write a number from 1 to 65535"))
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// "This" network, loopback, link-local, and multicast with everything above, in both families.
fn reserved_ranges() -> impl Iterator<Item = IpNet> {
    let v4 = [
        Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    let v6 = [
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 8),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    ];
    v4.into_iter().map(IpNet::V4).chain(v6.into_iter().map(IpNet::V6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_by_loopback() {
        for (bound, reached) in [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.10", "192.0.2.10")] {
            assert_eq!(reached_at(bound.parse().unwrap()).to_string(), reached);
        }
    }

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
