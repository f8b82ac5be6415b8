//! Names of nodes for pods: the key `NodeHosts` of the ConfigMap kube-system/coredns, which coredns serves as a hosts file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    pin::pin,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watch_object, watcher},
    },
};
use serde_json::json;
use tokio::select;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backoff::{Backoff, Failure, log_broken_watch};

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "coredns";
const KEY: &str = "NodeHosts";

/// Keeps coredns' hosts file true until `shutdown`. The client needs to read nodes, and to read and patch the ConfigMap.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let mut nodes = pin!(watcher(Api::<Node>::all(client), watcher::Config::default()).backoff(Backoff::default()));
    let mut configs = pin!(watch_object(config_maps.clone(), CONFIG_MAP).backoff(Backoff::default()));
    let mut hosts = Hosts::new();
    let mut config: Option<ConfigMap> = None;
    let mut backoff = Backoff::default();
    let mut retry = false;
    loop {
        select! {
            () = shutdown.cancelled() => return,
            Some(event) = nodes.next() => match event {
                Ok(event) => hosts.follow(event),
                Err(error) => { log_broken_watch("nodes", &error); continue }
            },
            Some(event) = configs.next() => match event {
                Ok(present) => config = present,
                Err(error) => { log_broken_watch("coredns' configuration", &error); continue }
            },
            () = backoff.wait(), if retry => {}
        }
        retry = false;
        let Some(patch) = config.as_ref().and_then(|config| hosts.patch(config)) else { continue };
        match config_maps.patch(CONFIG_MAP, &params(), &Patch::Merge(patch)).await {
            Ok(changed) => {
                info!(nodes = hosts.known.len(), "Told coredns the names of the nodes.");
                config = Some(changed);
                hosts.gone.clear();
                backoff = Backoff::default();
            }
            Err(error) => match Failure::of(&error) {
                // The watch brings what it has become.
                Failure::Outdated => {}
                Failure::Refused => warn!(%error, "The API refuses to tell coredns the names of the nodes."),
                Failure::Passing => {
                    debug!(%error, "Coredns could not be told the names of the nodes; trying again.");
                    retry = true;
                }
            },
        }
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() }
}

/// The lines of each node, and what is needed to tell them from lines that others wrote.
#[derive(Debug)]
struct Hosts {
    /// By node, its lines without the line end.
    known: BTreeMap<String, Vec<String>>,
    /// Nodes that went and may still have lines.
    gone: BTreeSet<String>,
    /// While the nodes are being listed: those seen so far.
    listing: Option<BTreeMap<String, Vec<String>>>,
}

impl Hosts {
    fn new() -> Self {
        Self { known: BTreeMap::new(), gone: BTreeSet::new(), listing: Some(BTreeMap::new()) }
    }

    fn follow(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(node) => {
                self.listing.get_or_insert_default().insert(node.name_any(), lines(&node));
            }
            Event::InitDone => {
                let former = std::mem::replace(&mut self.known, self.listing.take().unwrap_or_default());
                self.gone.extend(former.into_keys());
                self.gone.retain(|name| !self.known.contains_key(name));
            }
            Event::Apply(node) => {
                self.gone.remove(&node.name_any());
                self.known.insert(node.name_any(), lines(&node));
            }
            Event::Delete(node) => {
                self.known.remove(&node.name_any());
                self.gone.insert(node.name_any());
            }
        }
    }

    /// The change that `config` needs, if any; none before all nodes are known.
    fn patch(&self, config: &ConfigMap) -> Option<serde_json::Value> {
        if self.listing.is_some() {
            return None;
        }
        let present = config.data.as_ref().and_then(|data| data.get(KEY));
        let wanted = self.text(present.map_or("", String::as_str));
        (present != Some(&wanted)).then(|| {
            json!({
                "metadata": {"resourceVersion": config.metadata.resource_version},
                "data": {KEY: wanted},
            })
        })
    }

    /// The hosts file that follows `present`: lines of nodes as they are now, sorted by address. Lines that are not a node's stay, as
    /// users and tools such as k3d add names of their own; comments go, as in k3s.
    fn text(&self, present: &str) -> String {
        let foreign = present.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let foreign = foreign.filter(|line| {
            let name = line.split_whitespace().nth(1).unwrap_or_default();
            !self.known.contains_key(name) && !self.gone.contains(name)
        });
        let mut lines: Vec<&str> = self.known.values().flatten().map(String::as_str).chain(foreign).collect();
        lines.sort_by_key(|line| {
            let address = line.split_whitespace().next().unwrap_or_default();
            (address.parse::<IpAddr>().map_err(|_| address), *line)
        });
        lines.dedup();
        lines.into_iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        })
    }
}

/// `ADDRESS NAME [HOSTNAME]` for each internal address.
fn lines(node: &Node) -> Vec<String> {
    let name = node.name_any();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |kind: &'static str| addresses.iter().filter(move |address| address.type_ == kind);
    let hostname = of("Hostname").map(|address| &address.address).find(|hostname| **hostname != name);
    let suffix = hostname.map(|hostname| format!(" {hostname}")).unwrap_or_default();
    of("InternalIP").map(|address| format!("{} {name}{suffix}", address.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}})).unwrap()
    }

    fn hosts(nodes: &[Node]) -> Hosts {
        let mut hosts = Hosts::new();
        list(&mut hosts, nodes);
        hosts
    }

    fn list(hosts: &mut Hosts, nodes: &[Node]) {
        hosts.follow(Event::Init);
        for node in nodes {
            hosts.follow(Event::InitApply(node.clone()));
        }
        hosts.follow(Event::InitDone);
    }

    #[test]
    fn nodes_are_sorted_by_address_in_both_families() {
        let hosts = hosts(&[
            node("b", &[("InternalIP", "10.0.0.10"), ("InternalIP", "fd00::b"), ("Hostname", "b.lan")]),
            node("a", &[("InternalIP", "10.0.0.9"), ("ExternalIP", "192.0.2.1"), ("Hostname", "a")]),
        ]);
        assert_eq!(hosts.text(""), "10.0.0.9 a\n10.0.0.10 b b.lan\nfd00::b b b.lan\n");
    }

    #[test]
    fn others_lines_stay_and_a_nodes_former_lines_go() {
        let mut hosts = hosts(&[node("a", &[("InternalIP", "10.0.0.1")]), node("b", &[("InternalIP", "10.0.0.2")])]);
        let present = "# by hand\n10.0.0.7 a\n10.0.0.2 b\n172.17.0.1 host.k3d.internal\nnonsense\n";
        assert_eq!(hosts.text(present), "10.0.0.1 a\n10.0.0.2 b\n172.17.0.1 host.k3d.internal\nnonsense\n");
        hosts.follow(Event::Delete(node("b", &[])));
        assert_eq!(hosts.text(present), "10.0.0.1 a\n172.17.0.1 host.k3d.internal\nnonsense\n");
    }

    #[test]
    fn a_node_missed_while_the_watch_was_down_goes_too() {
        let mut hosts = hosts(&[node("a", &[("InternalIP", "10.0.0.1")]), node("b", &[("InternalIP", "10.0.0.2")])]);
        list(&mut hosts, &[node("a", &[("InternalIP", "10.0.0.1")])]);
        assert_eq!(hosts.text("10.0.0.1 a\n10.0.0.2 b\n"), "10.0.0.1 a\n");
    }

    #[test]
    fn the_key_is_there_as_soon_as_the_config_map_is() {
        let config: ConfigMap = serde_json::from_value(json!({"metadata": {"resourceVersion": "3"}})).unwrap();
        let mut hosts = Hosts::new();
        assert_eq!(hosts.patch(&config), None, "not before the nodes are known");
        hosts.follow(Event::InitDone);
        assert_eq!(
            hosts.patch(&config).unwrap(),
            json!({"metadata": {"resourceVersion": "3"}, "data": {"NodeHosts": ""}})
        );
        let config: ConfigMap = serde_json::from_value(json!({"data": {"NodeHosts": ""}})).unwrap();
        assert_eq!(hosts.patch(&config), None);
    }
}
