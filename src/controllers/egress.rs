//! What servers have to know of nodes and pods to reach them: the content of [`Egress`], kept true by watches.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    net::IpAddr,
    pin::pin,
};

use futures_util::{StreamExt as _, future::Either, stream};
use k3s_tunnel::{Egress, Node};
use k8s_openapi::{
    api::core::v1::{Node as NodeObject, Pod as PodObject},
    serde::de::DeserializeOwned,
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{select, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, log_broken_watch};

/// The label by which a node says that its tunnel leads to pods (k3s: modes `pod` and `cluster`).
pub(crate) const LEADS_TO_PODS: &str = "egress.k3s.io/cluster";

/// Keeps nodes, and with `pods` the addresses of pods, in `egress` until `shutdown`. The client needs to read nodes, and pods.
pub async fn run(client: Client, egress: &watch::Sender<Egress>, pods: bool, shutdown: CancellationToken) {
    let config = watcher::Config::default;
    let mut node_events = pin!(watcher(Api::<NodeObject>::all(client.clone()), config()).backoff(Backoff::default()));
    let mut pod_events = pin!(if pods {
        Either::Left(watcher(Api::<PodObject>::all(client), config()).backoff(Backoff::default()))
    } else {
        Either::Right(stream::pending())
    });
    let (mut nodes, mut pods) = (Known::new(), Known::new());
    loop {
        select! {
            () = shutdown.cancelled() => return,
            Some(event) = node_events.next() => match event {
                Ok(event) => if nodes.follow(event, |object| Some(node(object))) {
                    egress.send_modify(|egress| egress.nodes.clone_from(&nodes.items));
                },
                Err(error) => log_broken_watch("nodes", &error),
            },
            Some(event) = pod_events.next() => match event {
                Ok(event) => if pods.follow(event, pod) {
                    egress.send_modify(|egress| egress.pods = by_address(&pods.items));
                },
                Err(error) => log_broken_watch("pods", &error),
            },
        }
    }
}

/// What is known of the objects of one kind, by name.
pub(crate) struct Known<T> {
    pub(crate) items: HashMap<String, T>,
    /// While they are being listed: those seen so far.
    listing: HashMap<String, T>,
}

/// Where a pod runs, and its addresses.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    node: String,
    addresses: BTreeSet<IpAddr>,
}

impl<T: PartialEq> Known<T> {
    pub(crate) fn new() -> Self {
        Self { items: HashMap::new(), listing: HashMap::new() }
    }

    /// Tells all that `read` makes of the objects of `api` that `of` selects, whenever that changes, for as long as it is polled.
    pub(crate) async fn watch<K>(
        api: Api<K>,
        of: watcher::Config,
        what: &'static str,
        read: impl Fn(&K) -> Option<T>,
        mut changed: impl FnMut(&Self),
    ) where
        K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let mut events = pin!(watcher(api, of).backoff(Backoff::default()));
        let mut known = Self::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if known.follow(event, &read) {
                        changed(&known);
                    }
                }
                Err(error) => log_broken_watch(what, &error),
            }
        }
    }

    /// Takes an event, of which `read` makes what counts. Returns whether that changed.
    pub(crate) fn follow<K: kube::Resource>(&mut self, event: Event<K>, read: impl Fn(&K) -> Option<T>) -> bool {
        let key = |object: &K| match object.namespace() {
            Some(namespace) => format!("{namespace}/{}", object.name_any()),
            None => object.name_any(),
        };
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                self.listing.extend(read(&object).map(|item| (key(&object), item)));
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let changed = listed != self.items;
                self.items = listed;
                return changed;
            }
            Event::Apply(object) => {
                let (key, item) = (key(&object), read(&object));
                let changed = self.items.get(&key) != item.as_ref();
                match item {
                    Some(item) => self.items.insert(key, item),
                    None => self.items.remove(&key),
                };
                return changed;
            }
            Event::Delete(object) => return self.items.remove(&key(&object)).is_some(),
        }
        false
    }
}

fn node(object: &NodeObject) -> Node {
    let status = object.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |kinds: &'static [&str]| {
        addresses.iter().filter(|address| kinds.contains(&address.type_.as_str())).map(|address| &address.address)
    };
    Node {
        addresses: of(&["InternalIP", "ExternalIP"]).filter_map(|address| address.parse().ok()).collect(),
        hostnames: of(&["Hostname"]).cloned().collect(),
        kubelet_port: kubelet_port(object),
        leads_to_pods: object.labels().contains_key(LEADS_TO_PODS),
    }
}

/// `None` for a node whose kubelet has not said it.
pub(crate) fn kubelet_port(object: &NodeObject) -> Option<u16> {
    let endpoint = object.status.as_ref()?.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
    u16::try_from(endpoint.port).ok().filter(|port| *port != 0)
}

/// `None` for a pod that has no address of its own, or no longer.
fn pod(object: &PodObject) -> Option<Pod> {
    let (spec, status) = (object.spec.as_ref()?, object.status.as_ref()?);
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || spec.host_network == Some(true) {
        return None;
    }
    let addresses = status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok()).collect();
    Some(Pod { node: spec.node_name.clone()?, addresses })
}

fn by_address(pods: &HashMap<String, Pod>) -> HashMap<IpAddr, String> {
    pods.values().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.node.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node_object(address: &str) -> NodeObject {
        serde_json::from_value(json!({
            "metadata": {"name": "worker", "labels": {LEADS_TO_PODS: "true"}},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": address},
                    {"type": "ExternalIP", "address": "198.51.100.7"},
                    {"type": "Hostname", "address": "worker.lan"},
                    {"type": "InternalDNS", "address": "worker.internal"},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            },
        }))
        .unwrap()
    }

    fn pod_object(name: &str, phase: &str, address: &str) -> PodObject {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"nodeName": "worker", "containers": []},
            "status": {"phase": phase, "podIPs": [{"ip": address}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_known_by_its_addresses_names_and_port() {
        assert_eq!(
            node(&node_object("192.0.2.7")),
            Node {
                addresses: ["192.0.2.7".parse().unwrap(), "198.51.100.7".parse().unwrap()].into(),
                hostnames: ["worker.lan".to_owned()].into(),
                kubelet_port: Some(10250),
                leads_to_pods: true,
            }
        );
        let young = serde_json::from_value(json!({
            "metadata": {"name": "young"},
            "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}},
        }));
        assert_eq!(node(&young.unwrap()), Node::default());
    }

    #[test]
    fn only_what_counts_is_a_change() {
        let mut nodes = Known::new();
        let read = |object: &NodeObject| Some(node(object));
        assert!(!nodes.follow(Event::InitApply(node_object("192.0.2.7")), read));
        assert!(nodes.follow(Event::InitDone, read));
        let mut heartbeat = node_object("192.0.2.7");
        heartbeat.metadata.resource_version = Some("2".to_owned());
        assert!(!nodes.follow(Event::Apply(heartbeat), read));
        assert!(nodes.follow(Event::Apply(node_object("192.0.2.8")), read));
        assert!(nodes.follow(Event::Delete(node_object("192.0.2.8")), read));
        assert!(nodes.items.is_empty());
    }

    #[test]
    fn an_address_belongs_to_the_pod_that_has_it_now() {
        let mut pods = Known::new();
        pods.follow(Event::Apply(pod_object("old", "Running", "10.42.1.9")), pod);
        assert!(pods.follow(Event::Apply(pod_object("old", "Succeeded", "10.42.1.9")), pod));
        pods.follow(Event::Apply(pod_object("new", "Running", "10.42.1.9")), pod);
        assert!(!pods.follow(Event::Delete(pod_object("old", "Succeeded", "10.42.1.9")), pod));
        assert_eq!(by_address(&pods.items), HashMap::from([("10.42.1.9".parse().unwrap(), "worker".to_owned())]));

        let mut on_the_host = pod_object("host", "Running", "192.0.2.7");
        on_the_host.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(pod(&on_the_host), None);
    }
}
