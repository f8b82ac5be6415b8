//! Changes as text for `nft --file`, which is one transaction.

use std::fmt::{self, Write as _};

use ipnet::IpNet;

use crate::{
    Direction, ObjectKey, Options, Protocol,
    ruleset::{
        AddressMatch, Base, Body, Chain, Changed, Changes, Element, Family, Id, PortMatch, Rule, Ruleset, Set, Verdict,
    },
};

/// Our table, wholly ours.
pub const TABLE: &str = "k3s-network-policy";
/// Takes the table away. Naming it first makes that succeed where it never was.
pub const REMOVE: &str = "table inet k3s-network-policy\ndelete table inet k3s-network-policy\n";

/// Neighbours and routers are found by these, on the bridge as well: without them there is no IPv6 for a pod that may speak to anybody.
const NEIGHBOURS: &str = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, \
                          mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept";

/// A comment may have no more characters.
const LONGEST_COMMENT: usize = 127;

/// A table that lets nothing through from or to pods in `ranges`: for a node that knows that there are policies, and not yet which.
pub fn closed(options: &Options, ranges: &[IpNet]) -> String {
    let mut ruleset = Ruleset::default();
    ruleset.open(options, ranges);
    ruleset.whole().to_string()
}

impl Ruleset {
    /// Makes what is there whatever the policies are.
    pub(crate) fn open(&mut self, options: &Options, ranges: &[IpNet]) {
        let body =
            Body::Base { ranges: ranges.to_vec(), families: options.families.clone(), bridge: options.bridge.clone() };
        for base in Base::ALL {
            self.chains.set(Chain::Base(base), Some(body.clone()));
        }
        for family in &options.families {
            self.sets.set(Set::Itself(*family), Some(()));
        }
    }

    /// Takes that away.
    pub(crate) fn close(&mut self, options: &Options) {
        for base in Base::ALL {
            self.chains.set(Chain::Base(base), None);
        }
        for family in &options.families {
            self.remove_set(Set::Itself(*family));
        }
    }
}

impl fmt::Display for Changes {
    /// In an order in which nothing is named before it is there, nor goes while it is named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_bases = |is: fn(&Changed<Chain, Body>) -> bool| {
            self.chains.iter().any(|changed| matches!(changed.key, Chain::Base(_)) && is(changed))
        };
        if self.replaces || has_bases(|changed| changed.now.is_none()) {
            f.write_str(REMOVE)?;
            if !has_bases(|changed| changed.now.is_some()) {
                return Ok(());
            }
        }
        writeln!(f, "add table inet {TABLE}")?;
        let opens = self.replaces || has_bases(|changed| changed.before.is_none());
        if opens {
            self.maps(f)?;
        }
        for changed in self.sets.iter().filter(|changed| changed.now.is_some()) {
            writeln!(f, "add set inet {TABLE} {} {{ type {}; }}", changed.key, changed.key.type_of())?;
        }
        for Changed { key, before, .. } in self.chains.iter().filter(|changed| changed.now.is_some()) {
            if before.is_none() {
                writeln!(f, "add chain inet {TABLE} {key}{}", key.hook())?;
            }
        }
        // Of what goes and what comes, what goes first: a map has one verdict for an address.
        self.write_verdicts(f, "delete")?;
        self.write_elements(f, "delete")?;
        for Changed { key, before, now } in &self.chains {
            if before.is_some() {
                writeln!(f, "flush chain inet {TABLE} {key}")?;
            }
            if let Some(body) = now {
                body.write(f, *key)?;
            }
        }
        self.write_elements(f, "add")?;
        self.write_verdicts(f, "add")?;
        for changed in self.chains.iter().filter(|changed| changed.now.is_none()) {
            writeln!(f, "delete chain inet {TABLE} {}", changed.key)?;
        }
        for changed in self.sets.iter().filter(|changed| changed.now.is_none()) {
            writeln!(f, "delete set inet {TABLE} {}", changed.key)?;
        }
        Ok(())
    }
}

impl Changes {
    /// Adds the maps from addresses to chains, of the families that there are.
    fn maps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bodies = self.chains.iter().filter_map(|changed| changed.now.as_ref());
        let families = bodies.filter_map(|body| match body {
            Body::Base { families, .. } => Some(families),
            _ => None,
        });
        for family in families.take(1).flatten() {
            for direction in Direction::ALL {
                let (map, address) = (VerdictMap(direction, *family), family.address_type());
                writeln!(f, "add map inet {TABLE} {map} {{ type {address} : verdict; }}")?;
            }
        }
        Ok(())
    }

    fn write_verdicts(&self, f: &mut fmt::Formatter<'_>, verb: &str) -> fmt::Result {
        for direction in Direction::ALL {
            for family in [Family::V4, Family::V6] {
                let of = self.verdicts.iter().filter(|changed| {
                    let (of, address) = changed.key;
                    of == direction && Family::of(address) == family
                });
                let elements = of.filter_map(|Changed { key: (_, address), before, now }| match (verb, before, now) {
                    ("delete", Some(_), _) => Some(address.to_string()),
                    ("add", _, Some(verdict)) => Some(format!("{address} : {}", verdict.in_direction(direction))),
                    _ => None,
                });
                write_list(f, verb, &VerdictMap(direction, family), elements)?;
            }
        }
        Ok(())
    }

    fn write_elements(&self, f: &mut fmt::Formatter<'_>, verb: &str) -> fmt::Result {
        let wanted = |changed: &&Changed<(Set, Element), ()>| match verb {
            "delete" => changed.now.is_none() && !self.goes(changed.key.0),
            _ => changed.now.is_some(),
        };
        // They are sorted by set.
        for of_set in self.elements.chunk_by(|a, b| a.key.0 == b.key.0) {
            let elements = of_set.iter().filter(wanted).map(|changed| changed.key.1.to_string());
            write_list(f, verb, &of_set[0].key.0, elements)?;
        }
        Ok(())
    }

    /// Whether a set goes, and its elements with it.
    fn goes(&self, set: Set) -> bool {
        let found = self.sets.binary_search_by(|changed| changed.key.cmp(&set));
        found.is_ok_and(|index| self.sets[index].now.is_none())
    }
}

fn write_list(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    set: &dyn fmt::Display,
    elements: impl Iterator<Item = String>,
) -> fmt::Result {
    let elements: Vec<_> = elements.collect();
    if elements.is_empty() {
        return Ok(());
    }
    writeln!(f, "{verb} element inet {TABLE} {set} {{ {} }}", elements.join(", "))
}

impl Base {
    const ALL: [Self; 3] = [Self::ToNode, Self::Egress, Self::Ingress];

    fn direction(self) -> Direction {
        match self {
            Self::ToNode | Self::Egress => Direction::Egress,
            Self::Ingress => Direction::Ingress,
        }
    }
}

impl Chain {
    /// The hooks come before those of others that filter, and after translation to pods' addresses: what one of ours accepts goes on to the
    /// next. Source addresses are not translated before the last hook.
    fn hook(self) -> &'static str {
        match self {
            Self::Base(Base::ToNode) => " { type filter hook input priority filter - 2; policy accept; }",
            Self::Base(Base::Egress) => " { type filter hook forward priority filter - 2; policy accept; }",
            Self::Base(Base::Ingress) => " { type filter hook forward priority filter - 1; policy accept; }",
            Self::Pods(..) | Self::Policy(..) => "",
        }
    }
}

impl Body {
    fn write(&self, f: &mut fmt::Formatter<'_>, chain: Chain) -> fmt::Result {
        let rule = format_args!("add rule inet {TABLE} {chain}").to_string();
        match (self, chain) {
            (Self::Base { ranges, families, bridge }, Chain::Base(base)) => {
                let direction = base.direction();
                let (end, _) = direction.ends();
                writeln!(f, "{rule} ct state established,related accept")?;
                if base == Base::ToNode {
                    writeln!(f, "{rule} iifname \"lo\" accept")?;
                }
                writeln!(f, "{rule} {NEIGHBOURS}")?;
                if direction == Direction::Egress {
                    // Never routed: from pod to pod of this node, and to the node. No policy knows pods by these addresses.
                    writeln!(f, "{rule} iifname \"{bridge}\" ip6 saddr fe80::/10 drop")?;
                }
                for family in families {
                    let ip = family.protocol();
                    writeln!(f, "{rule} {ip} saddr . {ip} daddr @{} accept", Set::Itself(*family))?;
                    writeln!(f, "{rule} {ip} {end} vmap @{}", VerdictMap(direction, *family))?;
                }
                for range in ranges {
                    let ip = Family::of(range.addr()).protocol();
                    writeln!(f, "{rule} {ip} {end} {range} drop comment \"not a pod that is known\"")?;
                }
            }
            (Self::Pods(policies), Chain::Pods(direction, _)) => {
                for policy in policies {
                    let comment = Comment(policy);
                    writeln!(f, "{rule} jump {} comment {comment}", Chain::Policy(direction, Id::of(policy)))?;
                }
                writeln!(f, "{rule} drop")?;
            }
            (Self::Policy(policy, rules), Chain::Policy(direction, _)) => {
                let (_, peer) = direction.ends();
                for Rule { address, ports } in rules {
                    f.write_str(&rule)?;
                    if let Some(address) = address {
                        address.write(f, peer)?;
                    }
                    if let Some(ports) = ports {
                        write!(f, " {ports}")?;
                    }
                    writeln!(f, " accept comment {}", Comment(policy))?;
                }
            }
            (body, chain) => unreachable!("{chain:?} holds no {body:?}"),
        }
        Ok(())
    }
}

impl AddressMatch {
    fn write(&self, f: &mut fmt::Formatter<'_>, end: &str) -> fmt::Result {
        match self {
            Self::Peers(family, id) => {
                write!(f, " {} {end} @{}", family.protocol(), Set::Peers(*family, *id))
            }
            Self::Block { range, except } => {
                let family = Family::of(range.addr());
                let ip = family.protocol();
                match range.prefix_len() {
                    0 => write!(f, " meta nfproto {}", family.nfproto())?,
                    _ => write!(f, " {ip} {end} {range}")?,
                }
                if !except.is_empty() {
                    let except: Vec<_> = except.iter().map(IpNet::to_string).collect();
                    write!(f, " {ip} {end} != {{ {} }}", except.join(", "))?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::Ranges(protocol, ranges) => {
                let ranges = ranges.iter().map(|(first, last)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                });
                write!(f, "{protocol} dport {{ {} }}", ranges.collect::<Vec<_>>().join(", "))
            }
            Self::Named(direction, family, id) => {
                let set = Set::Ports(*direction, *family, *id);
                write!(f, "{} daddr . meta l4proto . th dport @{set}", family.protocol())
            }
        }
    }
}

impl Verdict {
    fn in_direction(self, direction: Direction) -> String {
        match self {
            Self::Accept => "accept".to_owned(),
            Self::Isolated(id) => format!("goto {}", Chain::Pods(direction, id)),
        }
    }
}

impl Direction {
    /// Which of a packet's addresses is the pod's that a policy selects, and which its peer's.
    fn ends(self) -> (&'static str, &'static str) {
        match self {
            Self::Ingress => ("daddr", "saddr"),
            Self::Egress => ("saddr", "daddr"),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl Family {
    fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn nfproto(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// The name of a map from pods' addresses to what becomes of their packets.
struct VerdictMap(Direction, Family);

impl fmt::Display for VerdictMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-verdicts-{}", self.0, self.1)
    }
}

/// Names have at most 31 characters, as old kernels want.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(Base::ToNode) => f.write_str("egress-to-node"),
            Self::Base(Base::Egress) => f.write_str("egress-forward"),
            Self::Base(Base::Ingress) => f.write_str("ingress-forward"),
            Self::Pods(direction, id) => write!(f, "{direction}-pods-{id}"),
            Self::Policy(direction, id) => write!(f, "{direction}-policy-{id}"),
        }
    }
}

impl Set {
    fn type_of(self) -> String {
        match self {
            Self::Itself(family) => format!("{0} . {0}", family.address_type()),
            Self::Peers(family, _) => family.address_type().to_owned(),
            Self::Ports(_, family, _) => format!("{} . inet_proto . inet_service", family.address_type()),
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself(family) => write!(f, "itself-{family}"),
            Self::Peers(family, id) => write!(f, "peers-{family}-{id}"),
            Self::Ports(Direction::Ingress, family, id) => write!(f, "ports-in-{family}-{id}"),
            Self::Ports(Direction::Egress, family, id) => write!(f, "ports-out-{family}-{id}"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Pair(address) => write!(f, "{address} . {address}"),
            Self::Port(address, protocol, port) => write!(f, "{address} . {protocol} . {port}"),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A policy's name, for people who read the ruleset.
struct Comment<'a>(&'a ObjectKey);

impl fmt::Display for Comment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.to_string();
        f.write_char('"')?;
        // The API lets names be of letters, digits, dots and dashes only.
        name.chars()
            .filter(|c| c.is_ascii_graphic() && *c != '"')
            .take(LONGEST_COMMENT)
            .try_for_each(|c| f.write_char(c))?;
        f.write_char('"')
    }
}
