//! One view of the cluster for a whole process: each resource is watched once, from its first reader on, however many read it.
//!
//! ```text
//! kube-apiserver ──one watch a resource──► Reflector ──► store, stripped to what readers need
//!                                              ├──► Derived<V>: a small value, told when it changes
//!                                              └──► touched objects, for a queue of a controller
//! ```
//!
//! Readers see values, not events: a watch that breaks, and the list that it begins with again, are nobody's business but the reflector's.
//! A slow reader holds up no other: values are replaced and touched objects counted once, whoever has looked at them.

mod changes;
mod derived;
mod reflector;

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt::{self, Debug},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::StreamExt as _;
use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Node, Pod, PodSpec, PodStatus, Service},
        networking::v1::NetworkPolicy,
    },
    serde::de::DeserializeOwned,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, watcher},
    },
};
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use derived::Derived;
pub(crate) use reflector::Object;
pub use reflector::Reflector;

/// The cluster as one process sees it. Clones see the same.
#[derive(Clone)]
pub struct ClusterView {
    access: Access,
    watches: Arc<Watches>,
}

/// As whom what is read.
#[derive(Clone)]
enum Access {
    /// A server: an administrator, who reads everything.
    Server(Client),
    /// A node: nodes as `system:k3s-controller`, its own pods and Services as kubelet.
    Node { name: String, kubelet: Client, controller: Client, scope: NodeScope },
}

/// What of the cluster an agent watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeScope {
    /// Its pod network leads to all nodes; it needs itself alone where another program makes the pod network.
    pub nodes: Scope,
    /// Network policies are about all pods; without them it needs those that run on it.
    pub pods: Scope,
}

/// How many of a kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that there are.
    All,
    /// The node's own.
    Own,
}

struct Watches {
    /// By the type that objects are read as, the resource's path, and which of its objects.
    reflectors: Mutex<HashMap<(TypeId, String), Box<dyn Any + Send>>>,
    tasks: TaskTracker,
    /// Whether the API answers.
    begun: watch::Sender<bool>,
    end: CancellationToken,
    _ends_with_the_last_view: DropGuard,
}

impl ClusterView {
    /// What a server sees, with the rights of `client`.
    pub fn of_server(client: Client) -> Self {
        Self::new(Access::Server(client))
    }

    /// What the node called `name` sees, with its kubelet's client and that of `system:k3s-controller`.
    pub fn of_node(name: &str, kubelet: Client, controller: Client, scope: NodeScope) -> Self {
        Self::new(Access::Node { name: name.to_owned(), kubelet, controller, scope })
    }

    fn new(access: Access) -> Self {
        let end = CancellationToken::new();
        let watches = Watches {
            reflectors: Mutex::default(),
            tasks: TaskTracker::new(),
            begun: watch::Sender::new(false),
            _ends_with_the_last_view: end.clone().drop_guard(),
            end,
        };
        Self { access, watches: Arc::new(watches) }
    }

    /// Lets watches start, since the API answers. Readers may come before.
    pub fn begin(&self) {
        self.watches.begun.send_replace(true);
    }

    /// Ends all watches. What was derived stays as it is.
    pub async fn close(&self) {
        self.watches.end.cancel();
        self.watches.tasks.close();
        self.watches.tasks.wait().await;
    }

    /// The client that reads what belongs to no single node.
    pub fn client(&self) -> &Client {
        match &self.access {
            Access::Server(client) => client,
            Access::Node { controller, .. } => controller,
        }
    }

    /// The cluster's nodes, or the own one alone where that is all that counts.
    pub fn nodes(&self) -> Reflector<Node> {
        let (client, config) = match &self.access {
            Access::Node { name, kubelet, scope: NodeScope { nodes: Scope::Own, .. }, .. } => {
                (kubelet, Config::default().fields(&format!("metadata.name={name}")))
            }
            _ => (self.client(), Config::default()),
        };
        self.reflect("nodes", Api::all(client.clone()), config, |node: &mut Node| {
            // Names of images are most of a node.
            if let Some(status) = &mut node.status {
                status.images = None;
                status.volumes_attached = None;
                status.volumes_in_use = None;
            }
        })
    }

    /// All pods, or the own ones alone where those are all that count.
    pub(crate) fn pods(&self) -> Reflector<Pod> {
        let (client, config) = match &self.access {
            Access::Node { name, kubelet, scope: NodeScope { pods: Scope::Own, .. }, .. } => {
                (kubelet, Config::default().fields(&format!("spec.nodeName={name}")))
            }
            _ => (self.client(), Config::default()),
        };
        self.reflect("pods", Api::all(client.clone()), config, strip_pod)
    }

    /// Services of type LoadBalancer. A node reads them as kubelet.
    pub(crate) fn balanced_services(&self) -> Reflector<Service> {
        let client = match &self.access {
            Access::Server(client) => client,
            Access::Node { kubelet, .. } => kubelet,
        };
        let balanced = Config::default().fields("spec.type=LoadBalancer");
        self.reflect("Services with a load balancer", Api::all(client.clone()), balanced, |_| {})
    }

    /// The cluster's namespaces: their names and labels.
    pub(crate) fn namespaces(&self) -> Reflector<Namespace> {
        self.reflect("namespaces", Api::all(self.client().clone()), Config::default(), |namespace: &mut Namespace| {
            namespace.metadata.annotations = None;
            (namespace.spec, namespace.status) = (None, None);
        })
    }

    /// The cluster's network policies.
    pub(crate) fn network_policies(&self) -> Reflector<NetworkPolicy> {
        let api = Api::all(self.client().clone());
        self.reflect("network policies", api, Config::default(), |policy: &mut NetworkPolicy| {
            policy.metadata.annotations = None;
        })
    }

    /// The objects of `api` that `config` selects, each as `strip` leaves it. `what` names them in the log.
    pub fn reflect<K>(
        &self,
        what: &'static str,
        api: Api<K>,
        config: Config,
        strip: impl Fn(&mut K) + Clone + Send + Sync + 'static,
    ) -> Reflector<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let key = key::<K>(api.resource_url(), &config);
        self.shared(key, what, move || {
            let strip = strip.clone();
            let events = watcher(api.clone(), config.clone()).modify(move |object| {
                object.meta_mut().managed_fields = None;
                strip(object);
            });
            events.boxed()
        })
    }

    fn shared<K: Object>(
        &self,
        key: (TypeId, String),
        what: &'static str,
        events: impl Fn() -> reflector::Events<K> + Send + 'static,
    ) -> Reflector<K> {
        // Nothing in here is left half done by a panic.
        let mut reflectors = self.watches.reflectors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reflector) = reflectors.get(&key).and_then(|any| any.downcast_ref::<Reflector<K>>()) {
            return reflector.clone();
        }
        let reflector = Reflector::new();
        reflectors.insert(key, Box::new(reflector.clone()));
        let (mut begun, end) = (self.watches.begun.subscribe(), self.watches.end.clone());
        let watch = reflector.clone();
        self.watches.tasks.spawn(async move {
            let follow = async {
                if begun.wait_for(|begun| *begun).await.is_ok() {
                    watch.follow(what, events).await;
                }
            };
            end.run_until_cancelled(follow).await;
        });
        reflector
    }
}

impl Debug for ClusterView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterView").field("watches", &self.watches.tasks.len()).finish_non_exhaustive()
    }
}

/// Two readers of one resource share its watch if they want the same of its objects.
fn key<T: 'static>(url: &str, config: &Config) -> (TypeId, String) {
    let or_all = |selector: &Option<String>| selector.clone().unwrap_or_default();
    (TypeId::of::<T>(), format!("{url}?{}&{}", or_all(&config.label_selector), or_all(&config.field_selector)))
}

/// Leaves where a pod runs, what it is called, by whom it is selected, and where it is reached.
fn strip_pod(pod: &mut Pod) {
    (pod.metadata.annotations, pod.metadata.owner_references) = (None, None);
    if let Some(spec) = pod.spec.take() {
        let strip = |container: Container| Container {
            name: container.name,
            ports: container.ports,
            restart_policy: container.restart_policy,
            ..Default::default()
        };
        // Those that go on running beside the others have ports as they do.
        let sidecars = spec.init_containers.into_iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always")).map(strip);
        let sidecars: Vec<_> = sidecars.collect();
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.into_iter().map(strip).collect(),
            init_containers: (!sidecars.is_empty()).then_some(sidecars),
            ..Default::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            host_ip: status.host_ip,
            conditions: status.conditions,
            ..Default::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::fake_api::FakeApi;

    fn config_maps(view: &ClusterView, name: &str) -> Reflector<ConfigMap> {
        let api = Api::namespaced(view.client().clone(), "kube-system");
        view.reflect("a ConfigMap", api, Config::default().fields(&format!("metadata.name={name}")), |_| {})
    }

    #[tokio::test]
    async fn a_resource_is_watched_once_however_many_read_it() {
        let api = FakeApi::new();
        let view = ClusterView::of_server(api.client());
        assert_eq!(api.watches("nodes"), 0, "before anybody reads");
        let mut first = view.nodes().derive(|_| Some(()), BTreeMap::len);
        tokio::task::yield_now().await;
        assert_eq!(api.watches("nodes"), 0, "before the API answers");
        view.begin();
        assert_eq!(first.changed().await, 0);
        api.put("/api/v1/nodes", serde_json::json!({"metadata": {"name": "edge-1"}}));
        assert_eq!(first.changed().await, 1);
        // One that comes later is told what is there.
        let mut second = view.nodes().derive(|_| Some(()), |nodes| nodes.keys().cloned().collect::<Vec<_>>());
        assert_eq!(second.changed().await, ["edge-1"]);
        assert_eq!(api.watches("nodes"), 1);

        let _ = (config_maps(&view, "coredns"), config_maps(&view, "coredns"));
        let mut other = config_maps(&view, "other").derive(|_| Some(()), BTreeMap::len);
        other.changed().await;
        view.close().await;
    }

    #[test]
    fn a_pod_keeps_what_readers_need_of_it() {
        let mut pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "labels": {"app": "a"}, "annotations": {"long": "text"}},
            "spec": {
                "nodeName": "edge-1",
                "containers": [{"name": "a", "image": "a", "ports": [{"containerPort": 80}]}],
                "initContainers": [{"name": "first"}, {"name": "proxy", "image": "b", "restartPolicy": "Always"}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.42.0.7"}], "qosClass": "BestEffort"},
        }))
        .unwrap();
        strip_pod(&mut pod);
        assert_eq!(
            serde_json::to_value(pod).unwrap(),
            serde_json::json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "a", "labels": {"app": "a"}},
                "spec": {
                    "nodeName": "edge-1",
                    "containers": [{"name": "a", "ports": [{"containerPort": 80}]}],
                    "initContainers": [{"name": "proxy", "restartPolicy": "Always"}],
                },
                "status": {"phase": "Running", "podIPs": [{"ip": "10.42.0.7"}]},
            })
        );
    }
}
