//! How nodes find each other: annotations on their objects, which are flannel's, so that nodes of k3s and ours share one overlay.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::mac::Mac;
use crate::address::Family;

/// What carries packets between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Frames in UDP packets, through any network.
    Vxlan,
    /// Plain routes by way of the nodes, which have to be on one network.
    HostGw,
}

/// How a node is reached in one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Frames for the device with this hardware address go to this address.
    Vxlan {
        /// The node's address.
        address: IpAddr,
        /// Its overlay device's.
        mac: Mac,
    },
    /// This address is the gateway.
    HostGw {
        /// The node's address.
        address: IpAddr,
    },
}

/// A node of the cluster as its object in the API shows it. Serializes, so that a node can be reached while no API answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub name: String,
    /// Its pods' ranges, one per family; empty until it has been given some.
    pub pod_cidrs: Vec<IpNet>,
    /// Its annotations, as far as they were asked for; the overlay's are those of [`is_annotation`].
    pub annotations: BTreeMap<String, String>,
}

/// Another node as one family of the overlay sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) node: String,
    pub(super) pods: IpNet,
    pub(super) endpoint: Endpoint,
}

/// Why another node's pods cannot be reached from here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    /// One cluster has one backend.
    #[error(
        "node {node} uses the overlay's backend {theirs} and this one {own}, so their pods do not reach each other: restart k3s on \
         whichever has not been since --flannel-backend was changed"
    )]
    Backend {
        /// The other node.
        node: String,
        /// What it uses.
        theirs: String,
        /// What we use.
        own: Backend,
    },
    /// An annotation that nothing of flannel's kind has written.
    #[error(
        "node {node} cannot be reached on the overlay, as its annotation {key} is wrong ({reason}): remove the annotation and restart k3s there"
    )]
    Annotation {
        /// The other node.
        node: String,
        /// The annotation's key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Two nodes with the same addresses for pods, or addresses that are no pods'.
    #[error(
        "node {node} has the pod range {pods}, which {what}: delete the node's object if the node is gone, and restart k3s there if not"
    )]
    Range {
        /// The other node.
        node: String,
        /// Its range.
        pods: IpNet,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel takes gateways only on networks it is on itself.
    #[error(
        "node {node} ({address}) is not on the network of {interface}, so its pods cannot be reached with --flannel-backend=host-gw: \
         use vxlan, which passes routers"
    )]
    NotAdjacent {
        /// The other node.
        node: String,
        /// Its address.
        address: IpAddr,
        /// The interface that the overlay uses.
        interface: String,
    },
}

/// Whether `key` is an annotation that says how a node is reached on the overlay.
pub fn is_annotation(key: &str) -> bool {
    key.starts_with("flannel.alpha.coreos.com/")
}

/// The annotations by which a node says that it is reached by `endpoints`, which are of one backend and one a family. `external` are
/// the addresses to be reached by instead (`--flannel-external-ip`), and `present` are the annotations the node has: an address that an
/// administrator put there to overwrite the node's own stays, as in flannel.
pub fn annotations(
    endpoints: &[Endpoint],
    external: &[IpAddr],
    present: &BTreeMap<String, String>,
) -> BTreeMap<&'static str, String> {
    let mut annotations = BTreeMap::new();
    for endpoint in endpoints {
        let family = Family::of(endpoint.address());
        let keys = Keys::of(family);
        let external = external.iter().find(|address| Family::of(**address) == family).map(IpAddr::to_string);
        let overwrite = external.or_else(|| present.get(keys.overwrite).filter(|address| !address.is_empty()).cloned());
        if let Some(overwrite) = &overwrite {
            annotations.insert(keys.overwrite, overwrite.clone());
        }
        annotations.insert(keys.address, overwrite.unwrap_or_else(|| endpoint.address().to_string()));
        annotations.insert(keys.data, endpoint.data());
        annotations.insert(BACKEND, endpoint.backend().to_string());
        annotations.insert(MANAGED, "true".to_owned());
    }
    annotations
}

impl Member {
    /// This node as `family` of the overlay sees it: `None` until it has said everything.
    pub(super) fn peer(&self, family: Family, own: Backend) -> Result<Option<Peer>, PeerError> {
        let said = |key: &str| self.annotations.get(key).map(String::as_str).filter(|said| !said.is_empty());
        let wrong = |key, reason| PeerError::Annotation { node: self.name.clone(), key, reason };
        let keys = Keys::of(family);
        let pods = self.pod_cidrs.iter().find(|cidr| Family::of(cidr.addr()) == family);
        let (Some("true"), Some(backend), Some(address), Some(pods)) =
            (said(MANAGED), said(BACKEND), said(keys.address), pods)
        else {
            return Ok(None);
        };
        if backend != own.to_string() {
            return Err(PeerError::Backend { node: self.name.clone(), theirs: backend.to_owned(), own });
        }
        let parsed = address.parse().ok().filter(|address| Family::of(*address) == family && is_host(*address));
        let address = parsed.ok_or_else(|| wrong(keys.address, format!("{address:?} is no address of a node")))?;
        let endpoint = match own {
            Backend::HostGw => Endpoint::HostGw { address },
            Backend::Vxlan => {
                let Some(data) = said(keys.data) else { return Ok(None) };
                let data: VxlanData =
                    serde_json::from_str(data).map_err(|error| wrong(keys.data, error.to_string()))?;
                let mac = data.mac.parse().map_err(|error| wrong(keys.data, error))?;
                Endpoint::Vxlan { address, mac }
            }
        };
        Ok(Some(Peer { node: self.name.clone(), pods: pods.trunc(), endpoint }))
    }
}

impl Endpoint {
    /// The node's address.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Vxlan { address, .. } | Self::HostGw { address } => *address,
        }
    }

    fn backend(&self) -> Backend {
        match self {
            Self::Vxlan { .. } => Backend::Vxlan,
            Self::HostGw { .. } => Backend::HostGw,
        }
    }

    /// What flannel's JSON encoder writes, byte for byte: flannel compares texts.
    fn data(&self) -> String {
        match self {
            Self::Vxlan { mac, .. } => format!(r#"{{"VNI":{},"VtepMAC":"{mac}"}}"#, super::vxlan::VNI),
            Self::HostGw { .. } => "null".to_owned(),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        })
    }
}

const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
const BACKEND: &str = "flannel.alpha.coreos.com/backend-type";

/// The annotations of one family.
struct Keys {
    address: &'static str,
    overwrite: &'static str,
    data: &'static str,
}

impl Keys {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                address: "flannel.alpha.coreos.com/public-ip",
                overwrite: "flannel.alpha.coreos.com/public-ip-overwrite",
                data: "flannel.alpha.coreos.com/backend-data",
            },
            Family::V6 => Self {
                address: "flannel.alpha.coreos.com/public-ipv6",
                overwrite: "flannel.alpha.coreos.com/public-ipv6-overwrite",
                data: "flannel.alpha.coreos.com/backend-v6-data",
            },
        }
    }
}

/// VXLAN's backend data. The network identifier is there since flannel 0.14 and always ours.
#[derive(Deserialize)]
struct VxlanData {
    #[serde(rename = "VtepMAC")]
    mac: String,
}

/// Whether packets can go to `address`.
fn is_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: &str = "5e:8a:0c:00:ff:01";

    fn vxlan(address: &str) -> Endpoint {
        Endpoint::Vxlan { address: address.parse().unwrap(), mac: MAC.parse().unwrap() }
    }

    fn member(annotations: &[(&str, &str)]) -> Member {
        let annotations =
            annotations.iter().map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), (*value).to_owned()));
        Member {
            name: "other".into(),
            pod_cidrs: ["10.42.1.0/24", "fd42:0:0:1::/64"].map(|cidr| cidr.parse().unwrap()).to_vec(),
            annotations: annotations.collect(),
        }
    }

    fn as_flannel_writes() -> Vec<(&'static str, &'static str)> {
        vec![
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("public-ip", "10.0.0.2"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"5e:8a:0c:00:ff:01"}"#),
            ("public-ipv6", "fd00::2"),
            ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"5e:8a:0c:00:ff:01"}"#),
        ]
    }

    #[test]
    fn what_we_write_is_what_flannel_writes() {
        let written = annotations(&[vxlan("10.0.0.2"), vxlan("fd00::2")], &[], &BTreeMap::new());
        let written = written.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>();
        assert_eq!(written, member(&as_flannel_writes()).annotations);
        let endpoint = Endpoint::HostGw { address: "10.0.0.2".parse().unwrap() };
        let written = annotations(&[endpoint], &[], &BTreeMap::new());
        assert_eq!(written["flannel.alpha.coreos.com/backend-data"], "null");
    }

    #[test]
    fn an_external_address_overwrites_the_nodes_own() {
        let external = ["192.0.2.7".parse().unwrap()];
        let written = annotations(&[vxlan("10.0.0.2"), vxlan("fd00::2")], &external, &BTreeMap::new());
        assert_eq!(written["flannel.alpha.coreos.com/public-ip-overwrite"], "192.0.2.7");
        assert_eq!(written["flannel.alpha.coreos.com/public-ip"], "192.0.2.7");
        assert_eq!(written["flannel.alpha.coreos.com/public-ipv6"], "fd00::2");
        let by_hand = member(&[("public-ip-overwrite", "192.0.2.9")]).annotations;
        let written = annotations(&[vxlan("10.0.0.2")], &[], &by_hand);
        assert_eq!(written["flannel.alpha.coreos.com/public-ip"], "192.0.2.9");
    }

    #[test]
    fn a_node_of_flannels_is_a_peer_in_both_families() {
        let member = member(&as_flannel_writes());
        let peer = member.peer(Family::V4, Backend::Vxlan).unwrap().unwrap();
        assert_eq!((peer.pods.to_string().as_str(), peer.endpoint), ("10.42.1.0/24", vxlan("10.0.0.2")));
        let peer = member.peer(Family::V6, Backend::Vxlan).unwrap().unwrap();
        assert_eq!((peer.pods.to_string().as_str(), peer.endpoint), ("fd42:0:0:1::/64", vxlan("fd00::2")));
    }

    #[test]
    fn a_node_that_has_not_said_everything_is_none_yet() {
        let all = as_flannel_writes();
        for missing in 0..4 {
            let mut some = all.clone();
            some.remove(missing);
            assert_eq!(member(&some).peer(Family::V4, Backend::Vxlan), Ok(None), "without {}", all[missing].0);
        }
        let unranged = Member { pod_cidrs: Vec::new(), ..member(&all) };
        assert_eq!(unranged.peer(Family::V4, Backend::Vxlan), Ok(None));
        let v4_only: Vec<_> = all[..4].to_vec();
        assert_eq!(member(&v4_only).peer(Family::V6, Backend::Vxlan), Ok(None));
    }

    #[test]
    fn wrong_annotations_are_named() {
        let with = |key: &'static str, value: &'static str| {
            let mut all = as_flannel_writes();
            all.retain(|(present, _)| *present != key);
            all.push((key, value));
            member(&all).peer(Family::V4, Backend::Vxlan).unwrap_err().to_string()
        };
        for (key, value) in [
            ("public-ip", "10.0.0"),
            ("public-ip", "fd00::2"),
            ("public-ip", "0.0.0.0"),
            ("backend-data", "null"),
            ("backend-data", r#"{"VtepMAC":"5e"}"#),
        ] {
            let error = with(key, value);
            assert!(error.contains("node other") && error.contains(key), "{value}: {error}");
        }
        assert!(with("backend-type", "host-gw").contains("backend host-gw and this one vxlan"));
    }

    proptest! {
        #[test]
        fn what_we_write_is_read_as_it_was_meant(node in 1u8..=254, bytes in any::<[u8; 6]>(), host_gw in any::<bool>()) {
            let address = IpAddr::from([10, 0, 0, node]);
            let mac = Mac::try_from(bytes.as_slice()).unwrap();
            prop_assume!(mac.is_unicast());
            let (endpoint, backend) = if host_gw {
                (Endpoint::HostGw { address }, Backend::HostGw)
            } else {
                (Endpoint::Vxlan { address, mac }, Backend::Vxlan)
            };
            let written = annotations(&[endpoint], &[], &BTreeMap::new());
            let annotations = written.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            let member = Member { annotations, ..member(&[]) };
            prop_assert_eq!(member.peer(Family::V4, backend).unwrap().unwrap().endpoint, endpoint);
        }

        #[test]
        fn whatever_others_write_is_an_answer_and_no_accident(address in ".*", data in ".*") {
            let member = member(&[
                ("kube-subnet-manager", "true"), ("backend-type", "vxlan"), ("public-ip", &address), ("backend-data", &data),
            ]);
            let _ = member.peer(Family::V4, Backend::Vxlan);
        }
    }
}
