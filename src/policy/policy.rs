//! A NetworkPolicy, understood.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{Labels, Selector};

/// Which way traffic goes, seen from the pod that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// The protocols that policies tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, which is meant where none is named.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// By the API's name for it; `None` for one that is not known.
    pub(crate) fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// A policy of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The pods of its namespace that it is for.
    pub(crate) pods: Selector,
    /// What it lets in, if it isolates pods for ingress.
    ingress: Option<Vec<Rule>>,
    /// What it lets out, if it isolates pods for egress.
    egress: Option<Vec<Rule>>,
}

/// Traffic that is let through: with one of the peers, on one of the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// All, if there are none.
    pub(crate) peers: Vec<Peer>,
    /// All ports of all protocols, if there are none.
    pub(crate) ports: Vec<Port>,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    Pods(PeerSelector),
    Block { range: IpNet, except: Vec<IpNet> },
}

/// Pods by the labels of their namespaces and their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerSelector {
    pub(crate) namespaces: Namespaces,
    pub(crate) pods: Selector,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Namespaces {
    /// The policy's own.
    Named(String),
    Selected(Selector),
}

/// A protocol's ports, at the receiving end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) number: PortNumber,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortNumber {
    Any,
    /// Both ends included.
    Range(u16, u16),
    /// What the receiving pod calls so.
    Named(String),
}

/// Why a policy cannot be followed. kube-apiserver lets none of these pass today.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// A selector's operator.
    #[error("the operator `{0}` of a label selector is not known")]
    Operator(String),
    /// A direction.
    #[error("the policy type `{0}` is not known")]
    PolicyType(String),
    /// A protocol.
    #[error("the protocol `{0}` is not known")]
    Protocol(String),
    /// An address range.
    #[error("`{0}` is not an address range")]
    Range(String),
    /// A port number.
    #[error("{0} is not a port")]
    Port(i32),
    /// A peer that says nothing.
    #[error("a peer names neither pods, namespaces nor addresses")]
    EmptyPeer,
}

impl Policy {
    /// What it lets through in a direction, if it isolates pods there.
    pub(crate) fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Whether it isolates a pod of its namespace in a direction.
    pub(crate) fn isolates(&self, direction: Direction, pod: &Labels) -> bool {
        self.rules(direction).is_some() && self.pods.matches(pod)
    }

    /// Understands a policy of `namespace`.
    ///
    /// # Errors
    /// It says something that this version does not know.
    pub fn of(namespace: &str, object: &NetworkPolicy) -> Result<Self, InvalidPolicy> {
        let spec = object.spec.clone().unwrap_or_default();
        let (mut ingress, mut egress) = (None, None);
        let in_rules = spec.ingress.unwrap_or_default();
        let out_rules = spec.egress.unwrap_or_default();
        let types = spec.policy_types.filter(|types| !types.is_empty()).unwrap_or_else(|| {
            // As the API server fills it in.
            let egress = (!out_rules.is_empty()).then_some("Egress");
            ["Ingress"].into_iter().chain(egress).map(str::to_owned).collect()
        });
        for kind in types {
            match kind.as_str() {
                "Ingress" => {
                    let rules = in_rules.iter().map(|rule| Rule::of(namespace, &rule.from, &rule.ports));
                    ingress = Some(rules.collect::<Result<_, _>>()?);
                }
                "Egress" => {
                    let rules = out_rules.iter().map(|rule| Rule::of(namespace, &rule.to, &rule.ports));
                    egress = Some(rules.collect::<Result<_, _>>()?);
                }
                _ => return Err(InvalidPolicy::PolicyType(kind)),
            }
        }
        Ok(Self { pods: selector(spec.pod_selector.as_ref())?, ingress, egress })
    }
}

impl Rule {
    fn of(
        namespace: &str,
        peers: &Option<Vec<NetworkPolicyPeer>>,
        ports: &Option<Vec<NetworkPolicyPort>>,
    ) -> Result<Self, InvalidPolicy> {
        Ok(Self {
            peers: peers.iter().flatten().map(|peer| Peer::of(namespace, peer)).collect::<Result<_, _>>()?,
            ports: ports.iter().flatten().map(Port::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl Peer {
    fn of(namespace: &str, peer: &NetworkPolicyPeer) -> Result<Self, InvalidPolicy> {
        let namespaces = match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), ..) => return Self::try_from(block),
            (None, Some(namespaces), _) => Namespaces::Selected(namespaces.try_into()?),
            (None, None, Some(_)) => Namespaces::Named(namespace.to_owned()),
            (None, None, None) => return Err(InvalidPolicy::EmptyPeer),
        };
        Ok(Self::Pods(PeerSelector { namespaces, pods: selector(peer.pod_selector.as_ref())? }))
    }
}

impl TryFrom<&IPBlock> for Peer {
    type Error = InvalidPolicy;

    fn try_from(block: &IPBlock) -> Result<Self, InvalidPolicy> {
        let except = block.except.iter().flatten().map(|text| range(text)).collect::<Result<Vec<_>, _>>()?;
        // Ranges within one another would be refused by the packet filter.
        Ok(Self::Block { range: range(&block.cidr)?, except: IpNet::aggregate(&except) })
    }
}

impl PeerSelector {
    /// Whether it selects a pod with these labels in `namespace`, whose own are `None` while it is not known: no labels have been seen
    /// then, so that none are selected by.
    pub(crate) fn matches(&self, namespace: &str, namespace_labels: Option<&Labels>, pod: &Labels) -> bool {
        let in_namespace = match &self.namespaces {
            Namespaces::Named(name) => name == namespace,
            Namespaces::Selected(selector) => namespace_labels.is_some_and(|labels| selector.matches(labels)),
        };
        in_namespace && self.pods.matches(pod)
    }
}

impl TryFrom<&NetworkPolicyPort> for Port {
    type Error = InvalidPolicy;

    fn try_from(port: &NetworkPolicyPort) -> Result<Self, InvalidPolicy> {
        let protocol = Protocol::of(port.protocol.as_deref())
            .ok_or_else(|| InvalidPolicy::Protocol(port.protocol.clone().unwrap_or_default()))?;
        let number =
            |number: i32| u16::try_from(number).ok().filter(|number| *number != 0).ok_or(InvalidPolicy::Port(number));
        let number = match &port.port {
            None => PortNumber::Any,
            Some(IntOrString::String(name)) => PortNumber::Named(name.clone()),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                if last < *first {
                    return Err(InvalidPolicy::Port(last));
                }
                PortNumber::Range(number(*first)?, number(last)?)
            }
        };
        Ok(Self { protocol, number })
    }
}

fn selector(selector: Option<&LabelSelector>) -> Result<Selector, InvalidPolicy> {
    selector.map_or_else(|| Ok(Selector::default()), Selector::try_from)
}

/// As the API lets them be written: with host bits, which do not count, and IPv4 within IPv6.
fn range(text: &str) -> Result<IpNet, InvalidPolicy> {
    let range: IpNet = text.trim().parse().map_err(|_| InvalidPolicy::Range(text.to_owned()))?;
    Ok(match range.trunc() {
        IpNet::V6(range) => match range.addr().to_ipv4_mapped() {
            Some(address) if range.prefix_len() >= MAPPED => {
                IpNet::new(IpAddr::V4(address), range.prefix_len() - MAPPED)
                    .map_err(|_| InvalidPolicy::Range(text.to_owned()))?
            }
            _ => IpNet::V6(range),
        },
        range @ IpNet::V4(_) => range,
    })
}

/// How long the prefix of IPv4 within IPv6 is.
const MAPPED: u8 = 96;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(spec: Value) -> Result<Policy, InvalidPolicy> {
        let object = json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec});
        Policy::of("default", &serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_a_policy_isolates_follows_from_what_it_has() {
        let rule = json!([{}]);
        for (spec, isolates) in [
            (json!({}), [true, false]),
            (json!({"egress": []}), [true, false]),
            (json!({"egress": rule}), [true, true]),
            (json!({"policyTypes": ["Egress"]}), [false, true]),
            (json!({"policyTypes": ["Egress"], "ingress": rule}), [false, true]),
            (json!({"policyTypes": ["Ingress", "Egress"]}), [true, true]),
        ] {
            let policy = parse(spec.clone()).unwrap();
            assert_eq!(Direction::ALL.map(|direction| policy.rules(direction).is_some()), isolates, "{spec}");
        }
    }

    #[test]
    fn peers_without_namespaces_are_the_policys_own() {
        let policy = parse(json!({"ingress": [{"from": [
            {"podSelector": {}},
            {"namespaceSelector": {"matchLabels": {"team": "a"}}},
        ]}]}));
        let policy = policy.unwrap();
        let [Peer::Pods(own), Peer::Pods(selected)] = &policy.rules(Direction::Ingress).unwrap()[0].peers[..] else {
            panic!("{policy:?}")
        };
        let (nothing, team) = (Labels::new(), Labels::from([("team".to_owned(), "a".to_owned())]));
        assert!(own.matches("default", None, &nothing));
        assert!(!own.matches("other", Some(&nothing), &nothing));
        assert!(selected.matches("other", Some(&team), &nothing));
        assert!(!selected.matches("other", Some(&nothing), &nothing));
        assert!(!selected.matches("other", None, &nothing), "a namespace that is not known yet");
    }

    #[test]
    fn ranges_are_read_as_the_api_means_them() {
        let text = |given: &str| range(given).unwrap().to_string();
        assert_eq!(text("10.1.2.3/16"), "10.1.0.0/16");
        assert_eq!(text("fd00::1/64"), "fd00::/64");
        assert_eq!(text("::ffff:10.1.2.0/120"), "10.1.2.0/24");
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (rule, problem) in [
            (json!({"ports": [{"protocol": "DCCP"}]}), "the protocol `DCCP` is not known"),
            (json!({"ports": [{"port": 0}]}), "0 is not a port"),
            (json!({"ports": [{"port": 90, "endPort": 80}]}), "80 is not a port"),
            (json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}), "`10.0.0.0` is not an address range"),
            (json!({"from": [{}]}), "a peer names neither pods, namespaces nor addresses"),
        ] {
            assert_eq!(parse(json!({"ingress": [rule]})).unwrap_err().to_string(), problem);
        }
        assert!(parse(json!({"policyTypes": ["Sideways"]})).is_err());
    }
}
