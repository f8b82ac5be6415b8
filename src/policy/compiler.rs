//! Keeps one node's ruleset what the cluster's objects say.
//!
//! ```text
//! pod ─┬─ of this node ──► group: the policies that isolate it ──► verdict of its addresses, chain of the group
//!      │                     └─► policies in use ──► chain of each ──► selectors and named ports in use
//!      └─ any ───────────────────────────────────────────────────────► elements of their sets
//! ```
//!
//! What is in use is counted: a policy that isolates no pod of this node costs nothing in the packet filter, and a selector that many
//! policies share is one set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use crate::{
    Direction, Labels, ObjectKey, Pod, Policy, Protocol,
    policy::{Peer, PeerSelector, Port, PortNumber},
    ruleset::{AddressMatch, Body, Chain, Changes, Element, Family, Id, PortMatch, Rule, Ruleset, Set, Verdict},
};

/// What stays as it is while a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The node's name: pods on it are isolated here, others elsewhere.
    pub node: String,
    /// The families that pods have addresses of.
    pub families: Vec<Family>,
    /// The bridge that pods are on.
    pub bridge: String,
}

/// What has become of an object, of which `None` is left when it is gone.
#[derive(Debug, Clone)]
pub enum Event {
    /// A policy.
    Policy(ObjectKey, Option<Policy>),
    /// A pod.
    Pod(ObjectKey, Option<Pod>),
    /// A namespace's labels.
    Namespace(String, Option<Labels>),
    /// The ranges that this node's pods have their addresses from.
    Ranges(Vec<IpNet>),
    /// The addresses that a pod of this node was given when it was attached to the network; they count before those that the API tells,
    /// which come later and stay longer. Empty when the node does not know.
    Attached(ObjectKey, BTreeSet<IpAddr>),
}

/// From objects to one node's ruleset.
#[derive(Debug)]
pub struct Compiler {
    options: Options,
    ranges: Vec<IpNet>,
    namespaces: BTreeMap<String, Labels>,
    policies: BTreeMap<ObjectKey, Policy>,
    pods: BTreeMap<ObjectKey, PodState>,
    own: BTreeSet<ObjectKey>,
    attached: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    /// Who says to have an address; the last has it.
    claims: BTreeMap<IpAddr, BTreeSet<Claim>>,
    groups: BTreeMap<Group, usize>,
    active: BTreeMap<(Direction, ObjectKey), Active>,
    peers: BTreeMap<PeerSelector, Used>,
    ports: BTreeMap<PortName, Used>,
    ruleset: Ruleset,
}

#[derive(Debug)]
struct PodState {
    pod: Pod,
    /// Those that it claims and has.
    owned: Vec<IpAddr>,
    /// What isolates it, for ingress and for egress; nothing if it is another node's.
    groups: [Option<Group>; 2],
}

/// In the order of what is believed first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    attached: bool,
    created: Option<Timestamp>,
    pod: ObjectKey,
}

/// The policies that isolate a pod in a direction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Group {
    direction: Direction,
    policies: Vec<ObjectKey>,
}

/// A policy that isolates pods of this node.
#[derive(Debug)]
struct Active {
    groups: usize,
    uses: BTreeSet<Use>,
}

/// A set that rules name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Peers(PeerSelector),
    Ports(PortName),
}

/// What a pod calls a port; of this node's pods for ingress, of all for egress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PortName {
    direction: Direction,
    protocol: Protocol,
    name: String,
}

#[derive(Debug)]
struct Used {
    policies: usize,
    id: Id,
}

impl Compiler {
    /// One that knows of no object.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            ranges: Vec::new(),
            namespaces: BTreeMap::new(),
            policies: BTreeMap::new(),
            pods: BTreeMap::new(),
            own: BTreeSet::new(),
            attached: BTreeMap::new(),
            claims: BTreeMap::new(),
            groups: BTreeMap::new(),
            active: BTreeMap::new(),
            peers: BTreeMap::new(),
            ports: BTreeMap::new(),
            ruleset: Ruleset::default(),
        }
    }

    /// Takes what has become of an object.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Policy(key, policy) => self.set_policy(key, policy),
            Event::Pod(key, pod) => self.set_pod(key, pod),
            Event::Namespace(name, labels) => self.set_namespace(name, labels),
            Event::Ranges(ranges) => self.set_ranges(ranges),
            Event::Attached(key, addresses) => self.set_attached(key, addresses),
        }
    }

    /// What the packet filter lacks since this or [`Self::whole`] was last called; `None` if it lacks nothing.
    pub fn changes(&mut self) -> Option<Changes> {
        self.ruleset.changes()
    }

    /// All there is, to take the place of whatever the packet filter holds; no table where there is no policy.
    pub fn whole(&mut self) -> Changes {
        self.ruleset.whole()
    }

    /// Whether there is any policy. Without one there are no rules either.
    pub fn has_policies(&self) -> bool {
        !self.policies.is_empty()
    }

    /// How many policies there are, how many of them isolate pods of this node, and how many pods those are.
    pub fn summary(&self) -> (usize, usize, usize) {
        let active: BTreeSet<_> = self.active.keys().map(|(_, policy)| policy).collect();
        let isolated =
            |key: &&ObjectKey| self.pods.get(*key).is_some_and(|state| state.groups.iter().any(Option::is_some));
        (self.policies.len(), active.len(), self.own.iter().filter(isolated).count())
    }

    fn set_ranges(&mut self, ranges: Vec<IpNet>) {
        self.ranges = ranges.iter().map(IpNet::trunc).collect();
        if self.has_policies() {
            self.ruleset.open(&self.options, &self.ranges);
        }
    }

    fn set_namespace(&mut self, name: String, labels: Option<Labels>) {
        if self.namespaces.get(&name) == labels.as_ref() {
            return;
        }
        let pods: Vec<_> = in_namespace(&self.pods, &name).map(|(key, _)| key.clone()).collect();
        pods.iter().for_each(|pod| self.withdraw(pod));
        match labels {
            Some(labels) => drop(self.namespaces.insert(name, labels)),
            None => drop(self.namespaces.remove(&name)),
        }
        pods.iter().for_each(|pod| self.place(pod));
    }

    fn set_attached(&mut self, key: ObjectKey, addresses: BTreeSet<IpAddr>) {
        self.change_pod(&key, |compiler| match addresses.is_empty() {
            true => drop(compiler.attached.remove(&key)),
            false => drop(compiler.attached.insert(key.clone(), addresses)),
        });
    }

    fn set_pod(&mut self, key: ObjectKey, pod: Option<Pod>) {
        if self.pods.get(&key).map(|state| &state.pod) == pod.as_ref() {
            return;
        }
        self.change_pod(&key, |compiler| {
            let Some(pod) = pod else {
                compiler.own.remove(&key);
                let former = compiler.pods.remove(&key);
                former.into_iter().flat_map(|state| state.groups).flatten().for_each(|group| compiler.release(&group));
                return;
            };
            match pod.node == compiler.options.node {
                true => drop(compiler.own.insert(key.clone())),
                false => drop(compiler.own.remove(&key)),
            }
            match compiler.pods.get_mut(&key) {
                Some(state) => state.pod = pod,
                None => {
                    let state = PodState { pod, owned: Vec::new(), groups: [None, None] };
                    compiler.pods.insert(key.clone(), state);
                }
            }
            compiler.regroup(&key);
        });
    }

    fn set_policy(&mut self, key: ObjectKey, policy: Option<Policy>) {
        if self.policies.get(&key) == policy.as_ref() {
            return;
        }
        let had_policies = self.has_policies();
        match policy {
            Some(policy) => drop(self.policies.insert(key.clone(), policy)),
            None => drop(self.policies.remove(&key)),
        }
        if !had_policies {
            self.ruleset.open(&self.options, &self.ranges);
        }
        for direction in Direction::ALL {
            self.rewrite(direction, &key);
        }
        let pods: Vec<_> = in_namespace_set(&self.own, &key.namespace).cloned().collect();
        pods.iter().for_each(|pod| self.regroup(pod));
        if had_policies != self.has_policies() {
            // Verdicts are there for all pods of this node or for none.
            let own: Vec<_> = self.own.iter().cloned().collect();
            own.iter().for_each(|pod| self.withdraw(pod));
            if !self.has_policies() {
                self.ruleset.close(&self.options);
            }
            own.iter().for_each(|pod| self.place(pod));
        }
    }

    /// Runs `change`, which may change what is known of one pod, with no trace of that pod in sets and maps, nor of those that claim
    /// the same addresses.
    fn change_pod(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Self)) {
        let before = self.claimed(key);
        for (address, claim) in &before {
            let claims = self.claims.get(address).into_iter().flatten();
            let others: Vec<_> = claims.filter(|other| *other != claim).map(|other| other.pod.clone()).collect();
            others.iter().for_each(|other| self.withdraw(other));
        }
        self.withdraw(key);
        let mut rivals = BTreeSet::from([key.clone()]);
        for (address, claim) in before {
            if let Some(claims) = self.claims.get_mut(&address) {
                claims.remove(&claim);
                rivals.extend(claims.iter().map(|claim| claim.pod.clone()));
                if claims.is_empty() {
                    self.claims.remove(&address);
                }
            }
        }
        change(self);
        for (address, claim) in self.claimed(key) {
            let claims = self.claims.entry(address).or_default();
            rivals.extend(claims.iter().map(|claim| claim.pod.clone()));
            claims.insert(claim);
        }
        // Each step for all of them: an address must not be taken out for one when it is there for another already.
        rivals.iter().for_each(|rival| self.withdraw(rival));
        rivals.iter().for_each(|rival| self.own_addresses(rival));
        rivals.iter().for_each(|rival| self.place(rival));
    }

    /// The addresses that a pod says to have, or of which it is said.
    fn claimed(&self, key: &ObjectKey) -> Vec<(IpAddr, Claim)> {
        let Some(PodState { pod, .. }) = self.pods.get(key) else { return Vec::new() };
        let attached = self.attached.get(key).filter(|_| pod.node == self.options.node);
        let addresses: BTreeSet<IpAddr> = match attached {
            Some(addresses) => addresses.clone(),
            None => pod.addresses.iter().copied().collect(),
        };
        let claim = Claim { attached: attached.is_some(), created: pod.created, pod: key.clone() };
        let of_families = addresses.into_iter().filter(|address| self.options.families.contains(&Family::of(*address)));
        of_families.map(|address| (address, claim.clone())).collect()
    }

    fn own_addresses(&mut self, key: &ObjectKey) {
        let has = |(address, claim): &(IpAddr, Claim)| {
            self.claims.get(address).and_then(BTreeSet::last).is_some_and(|last| last == claim)
        };
        let owned = self.claimed(key).into_iter().filter(has).map(|(address, _)| address).collect();
        if let Some(state) = self.pods.get_mut(key) {
            state.owned = owned;
        }
    }

    /// Puts a pod's addresses into all sets and maps where they belong.
    fn place(&mut self, key: &ObjectKey) {
        self.write(key, true);
    }

    /// Takes them out again. Until they are back nothing else must change what [`Self::write`] goes by.
    fn withdraw(&mut self, key: &ObjectKey) {
        self.write(key, false);
    }

    fn write(&mut self, key: &ObjectKey, present: bool) {
        let Some(PodState { pod, owned, groups }) = self.pods.get(key) else { return };
        let is_own = self.own.contains(key);
        let namespace = self.namespaces.get(&key.namespace);
        let mut write = |set, element| match present {
            true => self.ruleset.insert(set, element),
            false => self.ruleset.remove(set, element),
        };
        for address in owned {
            let family = Family::of(*address);
            for (selector, Used { id, .. }) in &self.peers {
                if selector.matches(&key.namespace, namespace, &pod.labels) {
                    write(Set::Peers(family, *id), Element::Address(*address));
                }
            }
            for (name, Used { id, .. }) in &self.ports {
                if let Some(element) = name.element(*address, pod, is_own) {
                    write(Set::Ports(name.direction, family, *id), element);
                }
            }
            if is_own && !self.policies.is_empty() {
                write(Set::Itself(family), Element::Pair(*address));
            }
        }
        if is_own {
            let there = present && !self.policies.is_empty();
            for (direction, group) in Direction::ALL.into_iter().zip(groups) {
                let verdict = group.as_ref().map_or(Verdict::Accept, |group| Verdict::Isolated(Id::of(group)));
                for address in owned {
                    self.ruleset.verdicts.set((direction, *address), there.then_some(verdict));
                }
            }
        }
    }

    /// Finds out which policies isolate a pod now.
    fn regroup(&mut self, key: &ObjectKey) {
        let Some(state) = self.pods.get(key) else { return };
        let is_own = self.own.contains(key);
        let wanted = Direction::ALL.map(|direction| {
            let isolating = in_namespace(&self.policies, &key.namespace)
                .filter(|(_, policy)| is_own && policy.isolates(direction, &state.pod.labels));
            let policies: Vec<_> = isolating.map(|(policy, _)| policy.clone()).collect();
            (!policies.is_empty()).then_some(Group { direction, policies })
        });
        if state.groups == wanted {
            return;
        }
        self.withdraw(key);
        for group in wanted.iter().flatten() {
            self.acquire(group);
        }
        let former = self.pods.get_mut(key).map(|state| std::mem::replace(&mut state.groups, wanted));
        for group in former.iter().flatten().flatten() {
            self.release(group);
        }
        self.place(key);
    }

    fn acquire(&mut self, group: &Group) {
        let pods = self.groups.entry(group.clone()).or_default();
        *pods += 1;
        if *pods > 1 {
            return;
        }
        let chain = Chain::Pods(group.direction, Id::of(group));
        self.ruleset.chains.set(chain, Some(Body::Pods(group.policies.clone())));
        for policy in &group.policies {
            let key = (group.direction, policy.clone());
            let active = self.active.entry(key).or_insert(Active { groups: 0, uses: BTreeSet::new() });
            active.groups += 1;
            if active.groups == 1 {
                self.rewrite(group.direction, policy);
            }
        }
    }

    fn release(&mut self, group: &Group) {
        let Some(pods) = self.groups.get_mut(group) else { return };
        *pods -= 1;
        if *pods > 0 {
            return;
        }
        self.groups.remove(group);
        self.ruleset.chains.set(Chain::Pods(group.direction, Id::of(group)), None);
        for policy in &group.policies {
            let key = (group.direction, policy.clone());
            let Some(active) = self.active.get_mut(&key) else { continue };
            active.groups -= 1;
            if active.groups == 0 {
                self.ruleset.chains.set(Chain::Policy(group.direction, Id::of(policy)), None);
                let uses = self.active.remove(&key).map(|active| active.uses);
                uses.iter().flatten().for_each(|used| self.release_use(used));
            }
        }
    }

    /// Writes the chain of a policy that is in use anew.
    fn rewrite(&mut self, direction: Direction, key: &ObjectKey) {
        let Some(rules) = self.policies.get(key).and_then(|policy| policy.rules(direction)) else { return };
        let Some(active) = self.active.get_mut(&(direction, key.clone())) else { return };
        let (body, uses) = compile(direction, rules, &self.options.families);
        let former = std::mem::replace(&mut active.uses, uses.clone());
        self.ruleset.chains.set(Chain::Policy(direction, Id::of(key)), Some(Body::Policy(key.clone(), body)));
        uses.iter().for_each(|used| self.acquire_use(used));
        former.iter().for_each(|used| self.release_use(used));
    }

    fn acquire_use(&mut self, used: &Use) {
        let (known, id) = match used {
            Use::Peers(selector) => (self.peers.get_mut(selector), Id::of(selector)),
            Use::Ports(name) => (self.ports.get_mut(name), Id::of(name)),
        };
        if let Some(known) = known {
            known.policies += 1;
            return;
        }
        for set in used.sets(id, &self.options.families) {
            self.ruleset.sets.set(set, Some(()));
        }
        for (key, PodState { pod, owned, .. }) in &self.pods {
            for address in owned {
                let family = Family::of(*address);
                match used {
                    Use::Peers(selector) => {
                        if selector.matches(&key.namespace, self.namespaces.get(&key.namespace), &pod.labels) {
                            self.ruleset.insert(Set::Peers(family, id), Element::Address(*address));
                        }
                    }
                    Use::Ports(name) => {
                        if let Some(element) = name.element(*address, pod, self.own.contains(key)) {
                            self.ruleset.insert(Set::Ports(name.direction, family, id), element);
                        }
                    }
                }
            }
        }
        match used {
            Use::Peers(selector) => drop(self.peers.insert(selector.clone(), Used { policies: 1, id })),
            Use::Ports(name) => drop(self.ports.insert(name.clone(), Used { policies: 1, id })),
        }
    }

    fn release_use(&mut self, used: &Use) {
        let known = match used {
            Use::Peers(selector) => self.peers.get_mut(selector),
            Use::Ports(name) => self.ports.get_mut(name),
        };
        let Some(known) = known else { return };
        known.policies -= 1;
        if known.policies > 0 {
            return;
        }
        for set in used.sets(known.id, &self.options.families) {
            self.ruleset.remove_set(set);
        }
        match used {
            Use::Peers(selector) => drop(self.peers.remove(selector)),
            Use::Ports(name) => drop(self.ports.remove(name)),
        }
    }
}

impl Use {
    fn sets(&self, id: Id, families: &[Family]) -> impl Iterator<Item = Set> {
        families.iter().map(move |family| match self {
            Self::Peers(_) => Set::Peers(*family, id),
            Self::Ports(name) => Set::Ports(name.direction, *family, id),
        })
    }
}

impl PortName {
    /// What a pod adds to the set of this name, if it has such a port.
    fn element(&self, address: IpAddr, pod: &Pod, is_own: bool) -> Option<Element> {
        let counts = is_own || self.direction == Direction::Egress;
        let mut ports = pod.ports.iter().filter(|_| counts);
        let port = ports.find(|port| port.protocol == self.protocol && port.name == self.name)?;
        Some(Element::Port(address, self.protocol, port.port))
    }
}

/// One policy's rules in a direction, and the sets that they name.
fn compile(direction: Direction, rules: &[crate::policy::Rule], families: &[Family]) -> (Vec<Rule>, BTreeSet<Use>) {
    let (mut compiled, mut uses) = (Vec::new(), BTreeSet::new());
    for rule in rules {
        let addresses = addresses(&rule.peers, families, &mut uses);
        let ports = ports(direction, &rule.ports, families, &mut uses);
        for address in &addresses {
            let fitting = ports.iter().filter(|ports| match (address, ports) {
                (Some(address), Some(PortMatch::Named(_, family, _))) => address.family() == *family,
                _ => true,
            });
            compiled.extend(fitting.map(|ports| Rule { address: address.clone(), ports: ports.clone() }));
        }
    }
    (compiled, uses)
}

impl AddressMatch {
    fn family(&self) -> Family {
        match self {
            Self::Peers(family, _) => *family,
            Self::Block { range, .. } => Family::of(range.addr()),
        }
    }
}

/// `None` stands for all addresses.
fn addresses(peers: &[Peer], families: &[Family], uses: &mut BTreeSet<Use>) -> Vec<Option<AddressMatch>> {
    if peers.is_empty() {
        return vec![None];
    }
    let mut addresses = Vec::new();
    for peer in peers {
        match peer {
            Peer::Pods(selector) => {
                uses.insert(Use::Peers(selector.clone()));
                let id = Id::of(selector);
                addresses.extend(families.iter().map(|family| Some(AddressMatch::Peers(*family, id))));
            }
            Peer::Block { range, except } if families.contains(&Family::of(range.addr())) => {
                addresses.push(Some(AddressMatch::Block { range: *range, except: except.clone() }));
            }
            Peer::Block { .. } => {}
        }
    }
    addresses
}

/// `None` stands for all ports.
fn ports(
    direction: Direction,
    ports: &[Port],
    families: &[Family],
    uses: &mut BTreeSet<Use>,
) -> Vec<Option<PortMatch>> {
    if ports.is_empty() {
        return vec![None];
    }
    let mut matches = Vec::new();
    let mut ranges = BTreeMap::<_, Vec<_>>::new();
    for Port { protocol, number } in ports {
        match number {
            PortNumber::Any => matches.push(Some(PortMatch::Protocol(*protocol))),
            PortNumber::Range(first, last) => ranges.entry(*protocol).or_default().push((*first, *last)),
            PortNumber::Named(name) => {
                let name = PortName { direction, protocol: *protocol, name: name.clone() };
                let id = Id::of(&name);
                uses.insert(Use::Ports(name));
                matches.extend(families.iter().map(|family| Some(PortMatch::Named(direction, *family, id))));
            }
        }
    }
    let ranges = ranges.into_iter().map(|(protocol, ranges)| Some(PortMatch::Ranges(protocol, merge(ranges))));
    matches.extend(ranges);
    matches
}

/// Ranges apart from one another: the packet filter refuses a set with others.
fn merge(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn in_namespace<'a, V>(
    objects: &'a BTreeMap<ObjectKey, V>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a V)> {
    objects.range(ObjectKey::first_in(namespace)..).take_while(move |(key, _)| key.namespace == namespace)
}

fn in_namespace_set<'a>(objects: &'a BTreeSet<ObjectKey>, namespace: &'a str) -> impl Iterator<Item = &'a ObjectKey> {
    objects.range(ObjectKey::first_in(namespace)..).take_while(move |key| key.namespace == namespace)
}
