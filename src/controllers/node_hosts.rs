//! Names of nodes for pods: the key `NodeHosts` of the ConfigMap kube-system/coredns, which coredns serves as a hosts file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

use k3s_supervise::TaskError;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use tokio::select;
use tracing::{debug, info};

use crate::{
    Context, Controller,
    backoff::{self, Failure},
};

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "coredns";
const KEY: &str = "NodeHosts";

/// Keeps coredns' hosts file true.
#[derive(Debug)]
pub struct NodeHosts;

impl Controller for NodeHosts {
    const NAME: &'static str = "node-hosts";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let api: Api<ConfigMap> = Api::namespaced(context.client, NAMESPACE);
        let of_coredns = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let configs = context.view.reflect("coredns' configuration", api.clone(), of_coredns, |_| {});
        let mut nodes = context.view.nodes().derive(|node| Some(lines(node)), BTreeMap::clone);
        let mut configs = configs.derive(|config| Some(config.clone()), |configs| configs.values().next().cloned());
        let mut hosts = Hosts::default();
        let mut config: Option<ConfigMap> = None;
        let mut backoff = backoff::of_api();
        let mut retry = false;
        loop {
            select! {
                nodes = nodes.changed() => hosts.follow(nodes),
                present = configs.changed() => config = present,
                () = backoff.wait(), if retry => {}
            }
            retry = false;
            let Some(patch) = config.as_ref().and_then(|config| hosts.patch(config)) else { continue };
            match api.patch(CONFIG_MAP, &params(), &Patch::Merge(patch)).await {
                Ok(changed) => {
                    info!(nodes = hosts.nodes.iter().flatten().count(), "Told coredns the names of the nodes.");
                    config = Some(changed);
                    hosts.gone.clear();
                    backoff.begin_anew();
                    context.status.solved(OBJECT);
                }
                Err(error) => {
                    // One that is outdated comes anew by its watch.
                    retry = match Failure::of(&error) {
                        Failure::Outdated => false,
                        Failure::Refused => {
                            context.status.problem(OBJECT, format!("the API refuses the names of the nodes: {error}"));
                            true
                        }
                        Failure::Passing => {
                            debug!(%error, "Coredns could not be told the names of the nodes; trying again.");
                            true
                        }
                    };
                }
            }
        }
    }
}

/// As the status names what this writes.
const OBJECT: &str = "ConfigMap kube-system/coredns";

fn params() -> PatchParams {
    PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() }
}

/// The lines of each node, and what is needed to tell them from lines that others wrote.
#[derive(Debug, Default)]
struct Hosts {
    /// By node, its lines without the line end; `None` until all nodes are known.
    nodes: Option<BTreeMap<String, Vec<String>>>,
    /// Nodes that went and may still have lines.
    gone: BTreeSet<String>,
}

impl Hosts {
    fn follow(&mut self, nodes: BTreeMap<String, Vec<String>>) {
        self.gone.extend(self.nodes.take().into_iter().flat_map(BTreeMap::into_keys));
        self.gone.retain(|name| !nodes.contains_key(name));
        self.nodes = Some(nodes);
    }

    /// The change that `config` needs, if any; none before all nodes are known.
    fn patch(&self, config: &ConfigMap) -> Option<serde_json::Value> {
        let nodes = self.nodes.as_ref()?;
        let present = config.data.as_ref().and_then(|data| data.get(KEY));
        let wanted = self.text(nodes, present.map_or("", String::as_str));
        (present != Some(&wanted)).then(|| {
            json!({
                "metadata": {"resourceVersion": config.metadata.resource_version},
                "data": {KEY: wanted},
            })
        })
    }

    /// The hosts file that follows `present`: lines of nodes as they are now, sorted by address. Lines that are not a node's stay, as
    /// users and tools such as k3d add names of their own; comments go, as in k3s.
    fn text(&self, nodes: &BTreeMap<String, Vec<String>>, present: &str) -> String {
        let foreign = present.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let foreign = foreign.filter(|line| {
            let name = line.split_whitespace().nth(1).unwrap_or_default();
            !nodes.contains_key(name) && !self.gone.contains(name)
        });
        let mut lines: Vec<&str> = nodes.values().flatten().map(String::as_str).chain(foreign).collect();
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
        let mut hosts = Hosts::default();
        hosts.follow(all(nodes));
        hosts
    }

    fn all(nodes: &[Node]) -> BTreeMap<String, Vec<String>> {
        nodes.iter().map(|node| (node.name_any(), lines(node))).collect()
    }

    fn text(hosts: &Hosts, present: &str) -> String {
        hosts.text(hosts.nodes.as_ref().unwrap(), present)
    }

    #[test]
    fn nodes_are_sorted_by_address_in_both_families() {
        let hosts = hosts(&[
            node("b", &[("InternalIP", "10.0.0.10"), ("InternalIP", "fd00::b"), ("Hostname", "b.lan")]),
            node("a", &[("InternalIP", "10.0.0.9"), ("ExternalIP", "192.0.2.1"), ("Hostname", "a")]),
        ]);
        assert_eq!(text(&hosts, ""), "10.0.0.9 a\n10.0.0.10 b b.lan\nfd00::b b b.lan\n");
    }

    #[test]
    fn others_lines_stay_and_a_nodes_former_lines_go() {
        let mut hosts = hosts(&[node("a", &[("InternalIP", "10.0.0.1")]), node("b", &[("InternalIP", "10.0.0.2")])]);
        let present = "# by hand\n10.0.0.7 a\n10.0.0.2 b\n172.17.0.1 host.k3d.internal\nnonsense\n";
        assert_eq!(text(&hosts, present), "10.0.0.1 a\n10.0.0.2 b\n172.17.0.1 host.k3d.internal\nnonsense\n");
        hosts.follow(all(&[node("a", &[("InternalIP", "10.0.0.1")])]));
        assert_eq!(text(&hosts, present), "10.0.0.1 a\n172.17.0.1 host.k3d.internal\nnonsense\n");
    }

    #[test]
    fn the_key_is_there_as_soon_as_the_config_map_is() {
        let config: ConfigMap = serde_json::from_value(json!({"metadata": {"resourceVersion": "3"}})).unwrap();
        let mut hosts = Hosts::default();
        assert_eq!(hosts.patch(&config), None, "not before the nodes are known");
        hosts.follow(BTreeMap::new());
        assert_eq!(
            hosts.patch(&config).unwrap(),
            json!({"metadata": {"resourceVersion": "3"}, "data": {"NodeHosts": ""}})
        );
        let config: ConfigMap = serde_json::from_value(json!({"data": {"NodeHosts": ""}})).unwrap();
        assert_eq!(hosts.patch(&config), None);
    }
}
