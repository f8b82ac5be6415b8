//! Whatever happens in whatever order, packets fare as the policies say, and what was changed step by step is what would be written at once.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{NODE, address, compiler, namespace, policy};
use crate::{
    Compiler, Direction, Event, Family, NamedPort, ObjectKey, Pod, Protocol,
    policy::{Peer, Port, PortNumber},
    ruleset::{AddressMatch, Body, Chain, Element, Id, PortMatch, Set, Verdict},
};

#[derive(Debug, Clone, Copy)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

/// What the objects are, kept as simply as can be.
#[derive(Default)]
struct Cluster {
    namespaces: BTreeMap<String, crate::Labels>,
    pods: BTreeMap<ObjectKey, Pod>,
    policies: BTreeMap<ObjectKey, crate::Policy>,
    attached: BTreeMap<ObjectKey, Vec<IpAddr>>,
}

impl Cluster {
    fn apply(&mut self, event: &Event) {
        match event.clone() {
            Event::Policy(key, Some(policy)) => drop(self.policies.insert(key, policy)),
            Event::Policy(key, None) => drop(self.policies.remove(&key)),
            Event::Pod(key, Some(pod)) => drop(self.pods.insert(key, pod)),
            Event::Pod(key, None) => drop(self.pods.remove(&key)),
            Event::Namespace(name, Some(labels)) => drop(self.namespaces.insert(name, labels)),
            Event::Namespace(name, None) => drop(self.namespaces.remove(&name)),
            Event::Attached(key, addresses) => drop(self.attached.insert(key, addresses.into_iter().collect())),
            Event::Ranges(_) => {}
        }
    }

    /// The pod that has an address.
    fn owner(&self, address: IpAddr) -> Option<(&ObjectKey, &Pod)> {
        let claims = self.pods.iter().filter_map(|(key, pod)| {
            let attached = self.attached.get(key).filter(|given| !given.is_empty() && pod.node == NODE);
            let addresses = attached.unwrap_or(&pod.addresses);
            addresses.contains(&address).then_some((attached.is_some(), pod.created, key, pod))
        });
        let last = claims.max_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)));
        last.map(|(.., key, pod)| (key, pod))
    }

    /// What the API's documentation says of a packet, on its way through the node.
    fn lets_through(&self, packet: Packet) -> bool {
        self.policies.is_empty()
            || packet.from == packet.to && self.owner(packet.from).is_some_and(|(_, pod)| pod.node == NODE)
            || self.allows(Direction::Egress, packet.from, packet.to, packet)
                && self.allows(Direction::Ingress, packet.to, packet.from, packet)
    }

    fn allows(&self, direction: Direction, of: IpAddr, peer: IpAddr, packet: Packet) -> bool {
        let own = self.owner(of).filter(|(_, pod)| pod.node == NODE);
        let Some((key, pod)) = own else { return !is_in_range(of) };
        let policies = self.policies.iter().filter(|(policy, _)| policy.namespace == key.namespace);
        let mut isolating = policies.filter(|(_, policy)| policy.isolates(direction, &pod.labels)).peekable();
        if isolating.peek().is_none() {
            return true;
        }
        let receiver = self.owner(packet.to).map(|(_, pod)| pod);
        isolating.flat_map(|(_, policy)| policy.rules(direction).unwrap()).any(|rule| {
            (rule.peers.is_empty() || rule.peers.iter().any(|of| self.is(of, peer)))
                && (rule.ports.is_empty() || rule.ports.iter().any(|port| is_on(port, packet, receiver)))
        })
    }

    fn is(&self, peer: &Peer, address: IpAddr) -> bool {
        match peer {
            Peer::Block { range, except } => {
                range.contains(&address) && !except.iter().any(|range| range.contains(&address))
            }
            Peer::Pods(selector) => self.owner(address).is_some_and(|(key, pod)| {
                selector.matches(&key.namespace, self.namespaces.get(&key.namespace), &pod.labels)
            }),
        }
    }
}

fn is_on(port: &Port, packet: Packet, receiver: Option<&Pod>) -> bool {
    port.protocol == packet.protocol
        && match &port.number {
            PortNumber::Any => true,
            PortNumber::Range(first, last) => (*first..=*last).contains(&packet.port),
            PortNumber::Named(name) => receiver.is_some_and(|pod| {
                let mut ports = pod.ports.iter();
                ports.any(|port| port.name == *name && port.protocol == packet.protocol && port.port == packet.port)
            }),
        }
}

/// A packet filter, as far as our rules need one, that is only ever told of changes.
#[derive(Default, Debug, PartialEq)]
struct Filter {
    chains: BTreeMap<Chain, Body>,
    sets: BTreeMap<Set, ()>,
    elements: BTreeMap<(Set, Element), ()>,
    verdicts: BTreeMap<(Direction, IpAddr), Verdict>,
}

impl Filter {
    fn apply(&mut self, changes: crate::Changes) {
        if changes.replaces {
            *self = Self::default();
        }
        fn each<K: Ord + Clone + std::fmt::Debug, V: PartialEq + Clone + std::fmt::Debug>(
            map: &mut BTreeMap<K, V>,
            changes: Vec<crate::ruleset::Changed<K, V>>,
        ) {
            for changed in changes {
                let before = match changed.now {
                    Some(now) => map.insert(changed.key.clone(), now),
                    None => map.remove(&changed.key),
                };
                assert_eq!(before, changed.before, "what was in the place of {:?}", changed.key);
            }
        }
        each(&mut self.chains, changes.chains);
        each(&mut self.sets, changes.sets);
        each(&mut self.elements, changes.elements);
        each(&mut self.verdicts, changes.verdicts);
    }

    fn lets_through(&self, packet: Packet) -> bool {
        if self.chains.is_empty() {
            return true;
        }
        let itself = (Set::Itself(Family::of(packet.from)), Element::Pair(packet.from));
        packet.from == packet.to && self.elements.contains_key(&itself)
            || self.accepts(Direction::Egress, packet.from, packet.to, packet)
                && self.accepts(Direction::Ingress, packet.to, packet.from, packet)
    }

    fn accepts(&self, direction: Direction, of: IpAddr, peer: IpAddr, packet: Packet) -> bool {
        match self.verdicts.get(&(direction, of)) {
            None => !is_in_range(of),
            Some(Verdict::Accept) => true,
            Some(Verdict::Isolated(id)) => {
                let Some(Body::Pods(policies)) = self.chains.get(&Chain::Pods(direction, *id)) else {
                    panic!("a verdict leads to a chain that is not there")
                };
                policies.iter().any(|policy| {
                    let Some(Body::Policy(_, rules)) = self.chains.get(&Chain::Policy(direction, Id::of(policy)))
                    else {
                        panic!("{policy} has no chain")
                    };
                    rules.iter().any(|rule| {
                        rule.address.as_ref().is_none_or(|address| self.is(address, peer))
                            && rule.ports.as_ref().is_none_or(|ports| self.is_on(ports, packet))
                    })
                })
            }
        }
    }

    fn is(&self, address: &AddressMatch, peer: IpAddr) -> bool {
        match address {
            AddressMatch::Peers(family, id) => self.has(Set::Peers(*family, *id), Element::Address(peer)),
            AddressMatch::Block { range, except } => {
                range.contains(&peer) && !except.iter().any(|range| range.contains(&peer))
            }
        }
    }

    fn is_on(&self, ports: &PortMatch, packet: Packet) -> bool {
        match ports {
            PortMatch::Protocol(protocol) => *protocol == packet.protocol,
            PortMatch::Ranges(protocol, ranges) => {
                *protocol == packet.protocol
                    && ranges.iter().any(|(first, last)| (*first..=*last).contains(&packet.port))
            }
            PortMatch::Named(direction, family, id) => {
                self.has(Set::Ports(*direction, *family, *id), Element::Port(packet.to, packet.protocol, packet.port))
            }
        }
    }

    fn has(&self, set: Set, element: Element) -> bool {
        assert!(self.sets.contains_key(&set), "{set} is named and not there");
        self.elements.contains_key(&(set, element))
    }
}

fn is_in_range(address: IpAddr) -> bool {
    let ranges: [ipnet::IpNet; 2] = ["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()];
    ranges.iter().any(|range| range.contains(&address))
}

const ADDRESSES: [&str; 7] =
    ["10.42.1.2", "10.42.1.3", "10.42.1.4", "fd42:0:0:1::2", "10.42.2.2", "192.0.2.7", "10.42.1.99"];

fn labels() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![json!({}), json!({"app": "a"}), json!({"app": "b"}), json!({"app": "a", "tier": "t"})])
}

fn selector() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({"matchLabels": {"app": "a"}}),
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}),
        json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
    ])
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector())
            .prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})),
        Just(json!({"ipBlock": {"cidr": "10.42.0.0/16", "except": ["10.42.1.2/31", "10.42.1.3/32"]}})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({"port": 80}),
        json!({"port": 80, "endPort": 8080}),
        json!({"port": 8000, "endPort": 9000}),
        json!({"port": "http"}),
        json!({"port": "http", "protocol": "UDP"}),
        json!({"protocol": "UDP"}),
        json!({"port": 80, "protocol": "SCTP"}),
    ])
}

fn spec() -> impl Strategy<Value = Value> {
    let rules = |ends: &'static str| {
        let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
        prop::collection::vec(rule.prop_map(move |(peers, ports)| json!({ends: peers, "ports": ports})), 0..3)
    };
    let types =
        prop::sample::select(vec![json!([]), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    (selector(), rules("from"), rules("to"), types).prop_map(
        |(pods, ingress, egress, types)| {
            json!({"podSelector": pods, "ingress": ingress, "egress": egress, "policyTypes": types})
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let name = || prop::sample::select(vec!["x/a", "x/b", "y/a", "y/b"]);
    let key = |name: &str| {
        let (namespace, name) = name.split_once('/').unwrap();
        ObjectKey::new(namespace, name)
    };
    let addresses = || prop::collection::btree_set(prop::sample::select(ADDRESSES[..5].to_vec()), 0..3);
    let nodes = prop::sample::select(vec![NODE, NODE, "edge-2"]);
    let http = prop::sample::select(vec![80u16, 8080]);
    let pods = (name(), nodes, labels(), addresses(), http, 0i64..3).prop_map(
        move |(name, node, labels, addresses, http, created)| {
            let pod = Pod {
                node: node.into(),
                labels: serde_json::from_value(labels).unwrap(),
                addresses: addresses.into_iter().map(address).collect(),
                ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: http }],
                created: k8s_openapi::jiff::Timestamp::from_second(created).ok(),
            };
            Event::Pod(key(name), Some(pod))
        },
    );
    prop_oneof![
        4 => pods,
        1 => name().prop_map(move |name| Event::Pod(key(name), None)),
        4 => (name(), spec()).prop_map(|(name, spec)| policy(name, spec)),
        2 => name().prop_map(move |name| Event::Policy(key(name), None)),
        2 => (prop::sample::select(vec!["x", "y"]), labels()).prop_map(|(name, labels)| namespace(name, labels)),
        1 => prop::sample::select(vec!["x", "y"]).prop_map(|name| Event::Namespace(name.into(), None)),
        2 => (name(), addresses()).prop_map(move |(name, addresses)| {
            Event::Attached(key(name), addresses.into_iter().map(address).collect())
        }),
    ]
}

fn packets() -> impl Iterator<Item = Packet> {
    let addresses = || ADDRESSES.into_iter().map(address);
    let pairs = addresses().flat_map(move |from| addresses().map(move |to| (from, to)));
    let kinds = [(Protocol::Tcp, 80), (Protocol::Tcp, 8080), (Protocol::Udp, 80), (Protocol::Sctp, 80)];
    pairs
        .filter(|(from, to)| from.is_ipv4() == to.is_ipv4())
        .flat_map(move |(from, to)| kinds.map(|(protocol, port)| Packet { from, to, protocol, port }))
}

fn fresh(events: &[Event]) -> Compiler {
    let mut compiler = compiler(&[Family::V4, Family::V6]);
    compiler.apply(Event::Ranges(vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()]));
    events.iter().for_each(|event| compiler.apply(event.clone()));
    compiler
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn packets_fare_as_the_policies_say(
        batches in prop::collection::vec(prop::collection::vec(event(), 1..4), 1..12),
    ) {
        let (mut cluster, mut filter, mut compiler) = (Cluster::default(), Filter::default(), fresh(&[]));
        for batch in &batches {
            for event in batch {
                cluster.apply(event);
                compiler.apply(event.clone());
            }
            if let Some(changes) = compiler.changes() {
                filter.apply(changes);
            }
            for packet in packets() {
                prop_assert_eq!(filter.lets_through(packet), cluster.lets_through(packet), "{:?}", packet);
            }
            let mut at_once = Filter::default();
            at_once.apply(compiler.whole());
            prop_assert_eq!(&filter, &at_once);
        }
        // The way there leaves no trace.
        let mut events: Vec<_> = cluster.namespaces.into_iter().map(|(name, labels)| Event::Namespace(name, Some(labels))).collect();
        events.extend(cluster.policies.into_iter().map(|(key, policy)| Event::Policy(key, Some(policy))));
        events.extend(cluster.pods.into_iter().map(|(key, pod)| Event::Pod(key, Some(pod))));
        let attached = cluster.attached.into_iter();
        events.extend(attached.map(|(key, addresses)| Event::Attached(key, addresses.into_iter().collect())));
        let mut direct = Filter::default();
        direct.apply(fresh(&events).whole());
        prop_assert_eq!(&filter, &direct);
    }
}
