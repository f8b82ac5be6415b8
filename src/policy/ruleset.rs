//! What one node's packet filter holds for policies, and what of it changed.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    net::IpAddr,
    ops::Bound,
};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::{Direction, ObjectKey, Protocol};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A name that follows from what it stands for, so that it is the same whenever that is met again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(crate) u64);

impl Id {
    pub(crate) fn of(value: &impl Hash) -> Self {
        let mut digest = Digest(Sha256::new());
        value.hash(&mut digest);
        Self(digest.finish())
    }
}

/// Tenants write what names are made of: two of them shall not be the same because somebody wants it.
struct Digest(Sha256);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        u64::from_be_bytes(std::array::from_fn(|index| digest[index]))
    }
}

/// A chain's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Chain {
    /// Where forwarded and, of egress, received packets come in.
    Base(Base),
    /// For pods to which the same policies apply.
    Pods(Direction, Id),
    /// What one policy lets through.
    Policy(Direction, Id),
}

/// The hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Base {
    /// From a pod to the node itself.
    ToNode,
    /// From a pod to elsewhere.
    Egress,
    /// To a pod. What comes from the node itself does not meet it.
    Ingress,
}

/// What is in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// Leads to the chains of pods; packets with addresses in `ranges` that belong to no pod which is known are dropped.
    Base { ranges: Vec<IpNet>, families: Vec<Family>, bridge: String },
    /// Asks one policy after the other, and drops what none lets through.
    Pods(Vec<ObjectKey>),
    /// Accepts what matches one of the rules.
    Policy(ObjectKey, Vec<Rule>),
}

/// Matches packets of which both hold; without an address or ports, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) address: Option<AddressMatch>,
    pub(crate) ports: Option<PortMatch>,
}

/// The address of the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddressMatch {
    Peers(Family, Id),
    Block { range: IpNet, except: Vec<IpNet> },
}

/// Ports at the receiving end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortMatch {
    Protocol(Protocol),
    /// Apart from one another, both ends included.
    Ranges(Protocol, Vec<(u16, u16)>),
    /// Those that the receiving pod calls so.
    Named(Direction, Family, Id),
}

/// A set's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    /// Pods of this node, each with itself.
    Itself(Family),
    /// The pods that a selector selects.
    Peers(Family, Id),
    /// A named port of the pods that have it: of this node's for ingress, of all for egress.
    Ports(Direction, Family, Id),
}

/// What is in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    Address(IpAddr),
    Pair(IpAddr),
    Port(IpAddr, Protocol, u16),
}

/// The least of all elements.
const LEAST: Element = Element::Address(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));

/// What becomes of a pod's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No policy is for it.
    Accept,
    /// Those of a chain of [`Chain::Pods`] are.
    Isolated(Id),
}

/// All of it, with what has changed since that was last taken.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ruleset {
    pub(crate) chains: Tracked<Chain, Body>,
    pub(crate) sets: Tracked<Set, ()>,
    pub(crate) elements: Tracked<(Set, Element), ()>,
    pub(crate) verdicts: Tracked<(Direction, IpAddr), Verdict>,
}

impl Ruleset {
    pub(crate) fn insert(&mut self, set: Set, element: Element) {
        self.elements.set((set, element), Some(()));
    }

    pub(crate) fn remove(&mut self, set: Set, element: Element) {
        self.elements.set((set, element), None);
    }

    pub(crate) fn remove_set(&mut self, set: Set) {
        let from = (Bound::Included((set, LEAST)), Bound::Unbounded);
        let elements: Vec<_> =
            self.elements.now.range(from).map(|(key, ())| *key).take_while(|(of, _)| *of == set).collect();
        for key in elements {
            self.elements.set(key, None);
        }
        self.sets.set(set, None);
    }

    /// What has changed since this or [`Self::whole`] was called; `None` if nothing did.
    pub(crate) fn changes(&mut self) -> Option<Changes> {
        let changes = Changes {
            replaces: false,
            chains: self.chains.changes(),
            sets: self.sets.changes(),
            elements: self.elements.changes(),
            verdicts: self.verdicts.changes(),
        };
        (changes.counts() != Counts::default()).then_some(changes)
    }

    /// All there is, in the place of whatever the packet filter holds.
    pub(crate) fn whole(&mut self) -> Changes {
        Changes {
            replaces: true,
            chains: self.chains.whole(),
            sets: self.sets.whole(),
            elements: self.elements.whole(),
            verdicts: self.verdicts.whole(),
        }
    }
}

/// What is to be done to the packet filter, in one transaction. [`Display`](std::fmt::Display)s as input of `nft --file`.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Whether it takes the place of all that is there.
    pub(crate) replaces: bool,
    pub(crate) chains: Vec<Changed<Chain, Body>>,
    pub(crate) sets: Vec<Changed<Set, ()>>,
    pub(crate) elements: Vec<Changed<(Set, Element), ()>>,
    pub(crate) verdicts: Vec<Changed<(Direction, IpAddr), Verdict>>,
}

/// How much changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chains that are made, written anew or removed.
    pub chains: usize,
    /// Sets that are made or removed.
    pub sets: usize,
    /// Elements of sets and maps that are added, replaced or removed.
    pub elements: usize,
}

impl Changes {
    /// How much changes.
    pub fn counts(&self) -> Counts {
        Counts { chains: self.chains.len(), sets: self.sets.len(), elements: self.elements.len() + self.verdicts.len() }
    }
}

/// One entry, before and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed<K, V> {
    pub(crate) key: K,
    pub(crate) before: Option<V>,
    pub(crate) now: Option<V>,
}

/// A map that remembers what was in the place of its changed entries.
#[derive(Debug, Clone)]
pub(crate) struct Tracked<K, V> {
    now: BTreeMap<K, V>,
    before: BTreeMap<K, Option<V>>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Tracked<K, V> {
    /// Puts `value` in the place of `key`, or nothing.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        let before = match value {
            Some(value) => self.now.insert(key.clone(), value),
            None => self.now.remove(&key),
        };
        self.before.entry(key).or_insert(before);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.now.len()
    }

    /// Those that are not as they were; what changed and changed back is not told.
    fn changes(&mut self) -> Vec<Changed<K, V>> {
        let touched = std::mem::take(&mut self.before).into_iter();
        let changed = touched.map(|(key, before)| Changed { now: self.now.get(&key).cloned(), key, before });
        changed.filter(|changed| changed.before != changed.now).collect()
    }

    fn whole(&mut self) -> Vec<Changed<K, V>> {
        self.before.clear();
        let all = self.now.iter();
        all.map(|(key, value)| Changed { key: key.clone(), before: None, now: Some(value.clone()) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_back_has_not_changed() {
        let mut tracked = Tracked::default();
        tracked.set("a", Some(1));
        tracked.set("b", Some(1));
        assert_eq!(tracked.changes().len(), 2);
        tracked.set("a", None);
        tracked.set("a", Some(1));
        tracked.set("b", Some(2));
        tracked.set("c", Some(1));
        tracked.set("c", None);
        assert_eq!(tracked.changes(), [Changed { key: "b", before: Some(1), now: Some(2) }]);
        assert_eq!(tracked.changes(), []);
        assert_eq!(tracked.whole().len(), 2);
    }

    #[test]
    fn a_set_goes_with_its_elements_and_with_no_others() {
        let mut ruleset = Ruleset::default();
        let sets = [1, 2, 3].map(|id| Set::Peers(Family::V4, Id(id)));
        for set in sets {
            ruleset.sets.set(set, Some(()));
            for last in [0, 1, 255] {
                ruleset.insert(set, Element::Address([0, 0, 0, last].into()));
            }
        }
        ruleset.changes();
        ruleset.remove_set(sets[1]);
        assert_eq!(ruleset.changes().unwrap().counts(), Counts { chains: 0, sets: 1, elements: 3 });
        assert_eq!(ruleset.elements.len(), 6);
    }
}
