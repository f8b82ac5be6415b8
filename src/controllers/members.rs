//! The nodes of the cluster as the pod network has to know them, and what a node says of itself there.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    future::ready,
};

use futures_util::{Stream, StreamExt as _};
use ipnet::{AddrParseError, IpNet};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tracing::{debug, warn};

use crate::backoff::{Backoff, log_broken_watch};

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its pods' ranges, one per family, the primary first; empty until kube-controller-manager has given it some.
    pub pod_cidrs: Vec<IpNet>,
    /// Its annotations, as far as they were asked for.
    pub annotations: BTreeMap<String, String>,
}

/// A node's pod range is not one.
#[derive(Debug, thiserror::Error)]
#[error(
    "node {node} has the pod range {cidr:?}, which is not a network: delete the node's object, and it registers anew"
)]
struct PodCidrError {
    node: String,
    cidr: String,
    source: AddrParseError,
}

/// How often in a row a watch is refused before that is worth a word: until a server has deployed its add-ons, nodes may not watch.
const REFUSALS: u32 = 5;

/// All members, sorted by name, each time something of them changes; never a part of them, and nothing while the API does not answer.
/// Of their annotations only those that `keep` takes are kept and looked at. The client needs to list and watch nodes.
pub fn follow_members(client: Client, keep: fn(&str) -> bool) -> impl Stream<Item = Vec<Member>> + Send {
    let mut members = Members::default();
    let mut failures = 0;
    watcher(Api::<Node>::all(client), watcher::Config::default()).backoff(Backoff::default()).filter_map(move |event| {
        let seen = match event {
            Ok(event) => {
                failures = 0;
                members.follow(event, keep)
            }
            Err(error) => {
                failures += 1;
                if failures >= REFUSALS {
                    log_broken_watch("the cluster's nodes", &error);
                } else {
                    debug!(%error, "The watch of the cluster's nodes broke; starting it again.");
                }
                None
            }
        };
        ready(seen)
    })
}

/// Makes the node called `name` have these annotations; others stay. Kubelet's credentials suffice for its own node.
pub async fn set_annotations(client: &Client, name: &str, annotations: &BTreeMap<&str, String>) -> kube::Result<()> {
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    Api::<Node>::all(client.clone()).patch_metadata(name, &params, &patch).await.map(drop)
}

#[derive(Debug, Default)]
struct Members {
    known: BTreeMap<String, Member>,
    /// While the nodes are being listed: those seen so far.
    listing: Option<BTreeMap<String, Member>>,
    listed: bool,
}

impl Members {
    /// All members, if `event` changed them.
    fn follow(&mut self, event: Event<Node>, keep: fn(&str) -> bool) -> Option<Vec<Member>> {
        let changed = match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(node) => {
                self.listing.get_or_insert_default().insert(node.name_any(), member(&node, keep));
                false
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let changed = !self.listed || listed != self.known;
                self.listed = true;
                self.known = listed;
                changed
            }
            Event::Apply(node) => {
                let member = member(&node, keep);
                match self.known.entry(member.name.clone()) {
                    Entry::Occupied(known) if *known.get() == member => false,
                    entry => {
                        entry.insert_entry(member);
                        true
                    }
                }
            }
            Event::Delete(node) => self.known.remove(&node.name_any()).is_some(),
        };
        changed.then(|| self.known.values().cloned().collect())
    }
}

fn member(node: &Node, keep: fn(&str) -> bool) -> Member {
    let pod_cidrs = pod_cidrs(node).unwrap_or_else(|error| {
        warn!(%error, "A node is left out of the pod network.");
        Vec::new()
    });
    let annotations = node.annotations().iter().filter(|(key, _)| keep(key));
    Member {
        name: node.name_any(),
        pod_cidrs,
        annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

fn pod_cidrs(node: &Node) -> Result<Vec<IpNet>, PodCidrError> {
    let Some(spec) = &node.spec else { return Ok(Vec::new()) };
    let cidrs = spec.pod_cidrs.iter().flatten();
    // An object from before dual stack has the single field only.
    let cidrs = if spec.pod_cidrs.is_some() { cidrs.chain(&None) } else { cidrs.chain(&spec.pod_cidr) };
    let parsed = cidrs
        .map(|cidr| cidr.parse().map_err(|source| PodCidrError { node: node.name_any(), cidr: cidr.clone(), source }));
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, spec: serde_json::Value, version: u32) -> Node {
        let annotations = json!({"flannel/public-ip": "10.0.0.1", "other": version.to_string()});
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec})).unwrap()
    }

    fn names(members: Option<Vec<Member>>) -> Option<Vec<String>> {
        members.map(|members| members.into_iter().map(|member| member.name).collect())
    }

    fn keep(key: &str) -> bool {
        key.starts_with("flannel/")
    }

    #[test]
    fn ranges_of_both_families_in_order() {
        let of = |spec| {
            let cidrs = pod_cidrs(&node("a", spec, 0)).map_err(|error| error.to_string())?;
            Ok::<_, String>(cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>())
        };
        let both = json!({"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24", "fd42::/64"]});
        assert_eq!(of(both).unwrap(), ["10.42.0.0/24", "fd42::/64"]);
        assert_eq!(of(json!({"podCIDR": "10.42.0.0/24"})).unwrap(), ["10.42.0.0/24"]);
        assert!(of(json!({})).unwrap().is_empty());
        let error = of(json!({"podCIDR": "10.42.0.0"})).unwrap_err();
        assert!(error.starts_with("node a has the pod range \"10.42.0.0\""), "{error}");
    }

    #[test]
    fn members_are_told_whole_and_only_when_they_change() {
        let mut members = Members::default();
        let (a, b) = (node("a", json!({}), 0), node("b", json!({}), 0));
        assert_eq!(members.follow(Event::Init, keep), None);
        assert_eq!(members.follow(Event::InitApply(b.clone()), keep), None);
        assert_eq!(members.follow(Event::InitApply(a), keep), None);
        let all = members.follow(Event::InitDone, keep).unwrap();
        assert_eq!(all[0].annotations, BTreeMap::from([("flannel/public-ip".into(), "10.0.0.1".into())]));
        assert_eq!(names(Some(all)).unwrap(), ["a", "b"]);

        assert_eq!(members.follow(Event::Apply(node("a", json!({}), 1)), keep), None, "nothing that was asked for");
        let ranged = node("a", json!({"podCIDR": "10.42.0.0/24"}), 1);
        assert_eq!(members.follow(Event::Apply(ranged), keep).unwrap()[0].pod_cidrs.len(), 1);
        assert_eq!(names(members.follow(Event::Delete(b.clone()), keep)).unwrap(), ["a"]);
        assert_eq!(members.follow(Event::Delete(b), keep), None);
    }

    #[test]
    fn a_watch_that_breaks_takes_nobody_away() {
        let mut members = Members::default();
        let (a, b) = (node("a", json!({}), 0), node("b", json!({}), 0));
        for event in [Event::Init, Event::InitApply(a.clone()), Event::InitApply(b), Event::InitDone] {
            members.follow(event, keep);
        }
        assert_eq!(members.follow(Event::Init, keep), None);
        assert_eq!(members.follow(Event::InitApply(a), keep), None);
        assert_eq!(
            names(members.follow(Event::InitDone, keep)).unwrap(),
            ["a"],
            "who went meanwhile is told at the end"
        );
    }

    #[test]
    fn a_cluster_without_nodes_is_told_too() {
        let mut members = Members::default();
        assert_eq!(members.follow(Event::Init, keep), None);
        assert_eq!(names(members.follow(Event::InitDone, keep)).unwrap(), [""; 0]);
    }
}
