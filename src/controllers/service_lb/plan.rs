//! Which addresses each Service is served at: a table of Services, nodes and ready endpoints in, addresses or a reason to wait out.
//!
//! k3s runs a pod per Service and node that takes the Service's ports of the node. Nothing runs here, so what kube-scheduler decides for
//! those pods (labels, taints, ports that are taken) is decided by the same rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

/// `namespace/name` of a Service.
pub(super) type Key = String;

/// A Service of type LoadBalancer that no other controller is asked to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LbService {
    /// When it was made, in a form that sorts: of two that want one port the older one has it.
    pub(super) created: String,
    /// In the order in which its addresses are told.
    pub(super) families: Vec<Family>,
    pub(super) ports: BTreeSet<Port>,
    /// Only nodes that have a ready endpoint serve it (`externalTrafficPolicy: Local`).
    pub(super) local: bool,
    /// The label `lbpool`.
    pub(super) pool: Option<String>,
    /// Of its own, or why they cannot be read.
    pub(super) tolerations: Result<Vec<Toleration>, String>,
}

/// A node, as far as Services are served by it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LbNode {
    pub(super) ready: bool,
    /// Those that keep pods away.
    pub(super) taints: Vec<Taint>,
    /// The label `enablelb`.
    pub(super) enabled: Option<String>,
    /// The label `lbpool`.
    pub(super) pool: Option<String>,
    pub(super) external: Vec<IpAddr>,
    pub(super) internal: Vec<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) number: u16,
    /// As Kubernetes writes it.
    pub(super) protocol: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taint {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) effect: String,
}

/// What lets pods onto a node despite its taint; of what is `None` every one is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Toleration {
    pub(super) key: Option<String>,
    pub(super) value: Option<String>,
    pub(super) effect: Option<String>,
}

/// What becomes of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// In the order in which they are told.
    pub(super) ingress: Vec<IpAddr>,
    /// Why there are none.
    pub(super) waits: Option<Waits>,
}

/// Why a Service has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waits {
    /// No node has the labels, or each has a taint.
    NoNode,
    /// Some port is taken on every node that might serve it.
    Taken { port: Port, by: Holder },
    /// None of its nodes is ready.
    NotReady,
    /// None of its nodes has a ready endpoint.
    NoEndpoint,
    /// No node has an address of its families.
    NoAddress,
    /// Its annotation cannot be read.
    Tolerations(String),
}

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    Service(Key),
    /// The node itself listens there.
    Node,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode => f.write_str("no node may serve it, by its labels and taints"),
            Self::Taken { port, by: Holder::Service(key) } => {
                write!(f, "port {port} is taken by the Service {key} on every node that may serve it")
            }
            Self::Taken { port, by: Holder::Node } => {
                write!(f, "nodes need port {port} themselves; choose another one")
            }
            Self::NotReady => f.write_str("none of the nodes that may serve it is ready"),
            Self::NoEndpoint => f.write_str("its externalTrafficPolicy is Local, and no node has a ready pod of it"),
            Self::NoAddress => f.write_str("no node has an address of its IP families"),
            Self::Tolerations(why) => write!(f, "its tolerations cannot be read: {why}"),
        }
    }
}

impl Family {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Everything that counts at one moment.
pub(super) struct Cluster<'a> {
    pub(super) services: &'a BTreeMap<Key, LbService>,
    pub(super) nodes: &'a BTreeMap<String, LbNode>,
    /// The nodes on which a Service has ready endpoints.
    pub(super) endpoints: &'a BTreeMap<Key, BTreeSet<String>>,
    /// Ports on which nodes listen themselves.
    pub(super) reserved: &'a BTreeSet<Port>,
}

/// Who has which port of a node.
type Taken<'a> = BTreeMap<(&'a str, Family, &'a Port), &'a Key>;

impl Cluster<'_> {
    /// What becomes of each Service.
    pub(super) fn plan(&self) -> BTreeMap<Key, Outcome> {
        let mut order: Vec<_> = self.services.iter().collect();
        order.sort_by_key(|(key, service)| (&service.created, *key));
        let mut taken = Taken::new();
        let mut outcomes = BTreeMap::new();
        for (key, service) in order {
            let outcome = match self.serve(key, service, &mut taken) {
                Ok(ingress) => Outcome { ingress, waits: None },
                Err(waits) => Outcome { ingress: Vec::new(), waits: Some(waits) },
            };
            outcomes.insert(key.clone(), outcome);
        }
        outcomes
    }

    /// The addresses of a Service, whose ports are taken from now on: also on nodes that have none of its pods for the moment.
    fn serve<'a>(&'a self, key: &'a Key, service: &'a LbService, taken: &mut Taken<'a>) -> Result<Vec<IpAddr>, Waits> {
        if let Some(port) = service.ports.iter().find(|port| self.reserved.contains(port)) {
            return Err(Waits::Taken { port: port.clone(), by: Holder::Node });
        }
        let tolerations = service.tolerations.as_ref().map_err(|why| Waits::Tolerations(why.clone()))?;
        let selects = self.nodes.values().any(|node| node.enabled.is_some());
        let may_serve = |node: &LbNode| {
            let selected = node.enabled.as_deref() == Some("true")
                && service.pool.as_ref().is_none_or(|pool| node.pool.as_ref() == Some(pool));
            let tolerated = |taint: &Taint| tolerations.iter().any(|toleration| toleration.tolerates(taint));
            (selected || !selects) && node.taints.iter().all(tolerated)
        };
        let candidates: Vec<_> = self.nodes.iter().filter(|(_, node)| may_serve(node)).collect();
        if candidates.is_empty() {
            return Err(Waits::NoNode);
        }
        let mut serving = Vec::new();
        let mut conflict = None;
        for (name, node) in candidates {
            let wanted = || {
                let families = service.families.iter();
                families.flat_map(|family| service.ports.iter().map(move |port| (name.as_str(), *family, port)))
            };
            match wanted().find_map(|place| Some((place.2, *taken.get(&place)?))) {
                Some(found) => conflict = conflict.or(Some(found)),
                None => {
                    taken.extend(wanted().map(|place| (place, key)));
                    serving.push((name, node));
                }
            }
        }
        if serving.is_empty()
            && let Some((port, holder)) = conflict
        {
            return Err(Waits::Taken { port: port.clone(), by: Holder::Service(holder.clone()) });
        }
        serving.retain(|(_, node)| node.ready);
        if serving.is_empty() {
            return Err(Waits::NotReady);
        }
        if service.local {
            let has_endpoint = |name: &String| self.endpoints.get(key).is_some_and(|nodes| nodes.contains(name));
            serving.retain(|(name, _)| has_endpoint(name));
            if serving.is_empty() {
                return Err(Waits::NoEndpoint);
            }
        }
        let nodes: Vec<_> = serving.into_iter().map(|(_, node)| node).collect();
        let addresses = addresses(&nodes, &service.families);
        if addresses.is_empty() { Err(Waits::NoAddress) } else { Ok(addresses) }
    }
}

/// The nodes' external addresses if one of them has any, else the internal ones: those of a family together, sorted as texts.
fn addresses(nodes: &[&LbNode], families: &[Family]) -> Vec<IpAddr> {
    let external: BTreeSet<IpAddr> = nodes.iter().flat_map(|node| node.external.iter().copied()).collect();
    let internal = || nodes.iter().flat_map(|node| node.internal.iter().copied()).collect();
    let all = if external.is_empty() { internal() } else { external };
    let of = |family: &Family| {
        let mut found: Vec<_> = all.iter().copied().filter(|address| Family::of(*address) == *family).collect();
        found.sort_by_key(ToString::to_string);
        found
    };
    families.iter().flat_map(of).collect()
}

impl Toleration {
    fn tolerates(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && self.effect.as_ref().is_none_or(|effect| *effect == taint.effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16) -> Port {
        Port { number, protocol: "TCP".into() }
    }

    fn service(created: &str, ports: &[u16]) -> LbService {
        LbService {
            created: created.into(),
            families: vec![Family::V4],
            ports: ports.iter().map(|number| port(*number)).collect(),
            local: false,
            pool: None,
            tolerations: Ok(Vec::new()),
        }
    }

    fn node(addresses: &[&str]) -> LbNode {
        let internal = addresses.iter().map(|address| address.parse().unwrap()).collect();
        LbNode { ready: true, internal, ..LbNode::default() }
    }

    fn taint(key: &str, value: &str) -> Taint {
        Taint { key: key.into(), value: value.into(), effect: "NoSchedule".into() }
    }

    /// Two nodes with addresses of both families.
    fn two() -> BTreeMap<String, LbNode> {
        BTreeMap::from([
            ("a".to_owned(), node(&["10.0.0.1", "fd00::1"])),
            ("b".to_owned(), node(&["10.0.0.2", "fd00::2"])),
        ])
    }

    fn plan(services: &[(&str, LbService)], nodes: &BTreeMap<String, LbNode>) -> BTreeMap<Key, Outcome> {
        let services = services.iter().map(|(key, service)| ((*key).to_owned(), service.clone())).collect();
        let endpoints = BTreeMap::from([("d/local".to_owned(), BTreeSet::from(["b".to_owned()]))]);
        let reserved = BTreeSet::from([port(6443)]);
        Cluster { services: &services, nodes, endpoints: &endpoints, reserved: &reserved }.plan()
    }

    /// What a lone Service gets: its addresses, or why it waits.
    fn alone(key: &str, service: LbService, nodes: &BTreeMap<String, LbNode>) -> String {
        let outcome = &plan(&[(key, service)], nodes)[key];
        match &outcome.waits {
            Some(waits) => waits.to_string(),
            None => outcome.ingress.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        }
    }

    fn with(name: &str, change: impl Fn(&mut LbNode)) -> BTreeMap<String, LbNode> {
        let mut nodes = two();
        change(nodes.get_mut(name).unwrap());
        nodes
    }

    #[test]
    fn a_service_has_the_addresses_of_the_nodes_that_serve_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let dual = |families: &[Family]| LbService { families: families.to_vec(), ..service("1", &[80]) };
        let local = LbService { local: true, ..service("1", &[80]) };
        let pooled = LbService { pool: Some("edge".into()), ..service("1", &[80]) };
        let select = |node: &mut LbNode| node.enabled = Some("true".into());
        let no_node = "no node may serve it, by its labels and taints";
        for (row, key, service, nodes, expected) in [
            ("all nodes", "d/s", service("1", &[80]), two(), "10.0.0.1 10.0.0.2"),
            ("one that is away", "d/s", service("1", &[80]), with("a", |node| node.ready = false), "10.0.0.2"),
            ("v6 alone", "d/s", dual(&[Family::V6]), two(), "fd00::1 fd00::2"),
            ("both", "d/s", dual(&[Family::V4, Family::V6]), two(), "10.0.0.1 10.0.0.2 fd00::1 fd00::2"),
            ("v6 first", "d/s", dual(&[Family::V6, Family::V4]), two(), "fd00::1 fd00::2 10.0.0.1 10.0.0.2"),
            (
                "one external address hides all internal ones",
                "d/s",
                service("1", &[80]),
                with("b", |node| node.external = vec![ip("203.0.113.7")]),
                "203.0.113.7",
            ),
            ("local, where its pods are", "d/local", local.clone(), two(), "10.0.0.2"),
            ("selected nodes alone", "d/s", service("1", &[80]), with("b", select), "10.0.0.2"),
            (
                "a label of another value",
                "d/s",
                service("1", &[80]),
                with("b", |node| node.enabled = Some("no".into())),
                no_node,
            ),
            ("a pool without nodes", "d/s", pooled.clone(), with("b", select), no_node),
            (
                "a pool",
                "d/s",
                pooled.clone(),
                with("b", |node| {
                    select(node);
                    node.pool = Some("edge".into());
                }),
                "10.0.0.2",
            ),
            ("pools do not count where no node is selected", "d/s", pooled, two(), "10.0.0.1 10.0.0.2"),
            (
                "tainted",
                "d/s",
                service("1", &[80]),
                with("a", |node| node.taints = vec![taint("own", "x")]),
                "10.0.0.2",
            ),
            ("without nodes", "d/s", service("1", &[80]), BTreeMap::new(), no_node),
            (
                "local without pods",
                "d/other",
                local,
                two(),
                "its externalTrafficPolicy is Local, and no node has a ready pod of it",
            ),
            (
                "no address of the family",
                "d/s",
                dual(&[Family::V6]),
                BTreeMap::from([("a".to_owned(), node(&["10.0.0.1"]))]),
                "no node has an address of its IP families",
            ),
            (
                "all away",
                "d/s",
                service("1", &[80]),
                BTreeMap::from([("a".to_owned(), LbNode::default())]),
                "none of the nodes that may serve it is ready",
            ),
            (
                "the node's own port",
                "d/s",
                service("1", &[80, 6443]),
                two(),
                "nodes need port 6443/TCP themselves; choose another one",
            ),
        ] {
            assert_eq!(alone(key, service, &nodes), expected, "{row}");
        }
    }

    #[test]
    fn addresses_are_sorted_as_texts_as_in_k3s() {
        let nodes = BTreeMap::from([
            ("a".to_owned(), node(&["10.0.0.9"])),
            ("b".to_owned(), node(&["10.0.0.10"])),
            ("c".to_owned(), node(&["10.0.0.9"])),
        ]);
        assert_eq!(alone("d/s", service("1", &[80]), &nodes), "10.0.0.10 10.0.0.9");
    }

    #[test]
    fn tolerations_of_a_service_let_it_onto_tainted_nodes() {
        let nodes = with("a", |node| node.taints = vec![taint("own", "x")]);
        let some = |text: &str| Some(text.to_owned());
        for (key, value, effect, expected) in [
            (some("own"), some("x"), some("NoSchedule"), "10.0.0.1 10.0.0.2"),
            (some("own"), None, None, "10.0.0.1 10.0.0.2"),
            (None, None, None, "10.0.0.1 10.0.0.2"),
            (some("own"), some("y"), None, "10.0.0.2"),
            (some("own"), None, some("NoExecute"), "10.0.0.2"),
            (some("other"), None, None, "10.0.0.2"),
        ] {
            let tolerations = Ok(vec![Toleration { key, value, effect }]);
            assert_eq!(alone("d/s", LbService { tolerations, ..service("1", &[80]) }, &nodes), expected);
        }
        let wrong = LbService { tolerations: Err("it is no list".into()), ..service("1", &[80]) };
        assert_eq!(alone("d/s", wrong, &nodes), "its tolerations cannot be read: it is no list");
    }

    #[test]
    fn of_two_that_want_one_port_the_older_has_it_and_the_other_waits() {
        let [old, new] = [service("2026-01-01T00:00:00Z", &[80]), service("2026-01-02T00:00:00Z", &[443, 80])];
        let planned = plan(&[("d/a-new", new.clone()), ("d/old", old.clone())], &two());
        assert_eq!(planned["d/old"].waits, None);
        assert_eq!(
            planned["d/a-new"].waits.as_ref().unwrap().to_string(),
            "port 80/TCP is taken by the Service d/old on every node that may serve it"
        );
        // What waits takes nothing from those after it.
        let third = service("2026-01-03T00:00:00Z", &[443]);
        let planned = plan(&[("d/a-new", new.clone()), ("d/old", old.clone()), ("d/third", third)], &two());
        assert_eq!(planned["d/third"].waits, None);
        // Another protocol and another family are other ports.
        let udp = LbService { ports: [Port { protocol: "UDP".into(), ..port(80) }].into(), ..new.clone() };
        let v6 = LbService { families: vec![Family::V6], ..new };
        let planned = plan(&[("d/old", old.clone()), ("d/udp", udp), ("d/v6", v6)], &two());
        assert!(planned.values().all(|outcome| outcome.waits.is_none()), "{planned:?}");
        // Made in one second, they are told apart by their names.
        let twin = old.clone();
        let planned = plan(&[("d/b", old), ("d/a", twin)], &two());
        assert_eq!((&planned["d/a"].waits, planned["d/b"].waits.is_some()), (&None, true));
    }

    #[test]
    fn pools_share_a_port() {
        let mut nodes = two();
        for (name, node) in &mut nodes {
            node.enabled = Some("true".into());
            node.pool = Some(format!("pool-{name}"));
        }
        let of = |pool: &str| LbService { pool: Some(pool.into()), ..service("1", &[80]) };
        let planned = plan(&[("d/one", of("pool-a")), ("d/two", of("pool-b")), ("d/all", service("2", &[80]))], &nodes);
        let told = |key: &str| planned[key].ingress.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((told("d/one"), told("d/two")), (vec!["10.0.0.1".to_owned()], vec!["10.0.0.2".to_owned()]));
        assert!(planned["d/all"].waits.is_some());
    }

    #[test]
    fn a_local_service_keeps_its_port_where_its_pods_may_come_back() {
        let local = LbService { local: true, ..service("1", &[80]) };
        let planned = plan(&[("d/local", local), ("d/later", service("2", &[80]))], &two());
        assert_eq!(planned["d/local"].ingress, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert!(matches!(planned["d/later"].waits, Some(Waits::Taken { .. })));
    }
}
