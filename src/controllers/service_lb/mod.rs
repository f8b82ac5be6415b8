//! ServiceLB: Services of type LoadBalancer are served at their nodes' own addresses, as by k3s, and without a pod for each.
//!
//! ```text
//! Services, nodes, ready endpoints ──plan──► addresses or a reason ──► status.loadBalancer.ingress ──► kube-proxy of each node
//! ```
//!
//! kube-proxy takes packets to the addresses in a Service's status wherever they arrive, so to tell a node's own addresses there is all
//! that it takes: they are answered on that node, and on every other by a shorter way. `plan.rs` has the rules, `read.rs` what they go by.

mod plan;
mod ports;
mod read;
mod retired;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::stream;
use k3s_supervise::{StatusLine, TaskError};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        controller::Action,
        events::{Event, EventType, Recorder},
        reflector::ObjectRef,
        watcher::Config,
    },
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use crate::{
    Context, Controller, Place,
    queue::reconcile_each,
    view::{ClusterView, Derived, Reflector},
};
use plan::{Cluster, Key, LbNode, LbService, Outcome, Port};
pub use ports::BalancedPort;
pub use retired::RetiredServiceLb;

/// What k3s puts on Services so that their pods go before they do. There are no pods; without k3s it would keep Services for ever.
const FINALIZERS: [&str; 2] = ["service.kubernetes.io/load-balancer-cleanup", "svccontroller.k3s.cattle.io/daemonset"];

/// Serves Services of type LoadBalancer.
#[derive(Debug, Clone)]
pub struct ServiceLb {
    /// Where k3s' own load balancer had its pods, which take the same ports (`--servicelb-namespace`).
    pub namespace: String,
    /// Ports that no Service gets, each with its protocol as Kubernetes writes it: nodes listen there themselves.
    pub reserved: Vec<(u16, &'static str)>,
}

impl Controller for ServiceLb {
    const NAME: &'static str = "service-lb";
    const PLACE: Place = Place::Leader;

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        retired::delete_pods(&context.client, &self.namespace).await?;
        let services = context.view.balanced_services();
        let planned = watch::Sender::new(None);
        let (touched, also) = mpsc::unbounded_channel::<ObjectRef<Service>>();
        let also = stream::unfold(also, |mut also| async move { also.recv().await.map(|service| (service, also)) });
        let status = Statuses {
            client: context.client,
            events: context.events,
            status: context.status.clone(),
            planned: planned.subscribe(),
            told: Arc::default(),
        };
        let reconcile = move |service: Arc<Service>| {
            let status = status.clone();
            async move {
                status.update(&service).await?;
                Ok(Action::await_change())
            }
        };
        tokio::select! {
            () = reconcile_each(&services, Some(also), context.status, reconcile) => {}
            () = self.plan(&context.view, &services, &planned, &touched) => {}
        }
        Ok(())
    }
}

impl ServiceLb {
    /// Plans anew whenever something changes that counts, and names the Services that have become others. Lives until dropped.
    async fn plan(
        &self,
        view: &ClusterView,
        services: &Reflector<Service>,
        planned: &watch::Sender<Option<BTreeMap<Key, Outcome>>>,
        touched: &mpsc::UnboundedSender<ObjectRef<Service>>,
    ) {
        let reserved = self.reserved.iter();
        let reserved: BTreeSet<_> =
            reserved.map(|(number, protocol)| Port { number: *number, protocol: (*protocol).to_owned() }).collect();
        let mut services = services.derive(read::service, BTreeMap::clone);
        let mut nodes = view.nodes().derive(|node| Some(read::node(node)), BTreeMap::clone);
        // Slices are many, and count only where some Service is served by the nodes of its pods alone.
        let mut endpoints: Option<Derived<BTreeMap<Key, BTreeSet<String>>>> = None;
        let (mut known_services, mut known_nodes) =
            (None::<BTreeMap<Key, LbService>>, None::<BTreeMap<String, LbNode>>);
        let mut known_endpoints = None;
        loop {
            let slices = async {
                match &mut endpoints {
                    Some(endpoints) => endpoints.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                services = services.changed() => known_services = Some(services),
                nodes = nodes.changed() => known_nodes = Some(nodes),
                slices = slices => known_endpoints = Some(slices),
            }
            let (Some(services), Some(nodes)) = (&known_services, &known_nodes) else { continue };
            let needs_endpoints = services.values().any(|service| service.local);
            if needs_endpoints && endpoints.is_none() {
                endpoints = Some(endpoints_of(view));
            }
            // Until they are known no node would seem to have any.
            if needs_endpoints && known_endpoints.is_none() {
                continue;
            }
            let none = BTreeMap::new();
            let endpoints = known_endpoints.as_ref().unwrap_or(&none);
            let plan = Cluster { services, nodes, endpoints, reserved: &reserved }.plan();
            let before = planned.send_replace(Some(plan.clone())).unwrap_or_default();
            for key in plan.iter().filter(|(key, outcome)| before.get(*key) != Some(*outcome)).map(|(key, _)| key) {
                if let Some((namespace, name)) = key.split_once('/') {
                    // Whoever receives lives as long as this.
                    let _ = touched.send(ObjectRef::new(name).within(namespace));
                }
            }
        }
    }
}

fn endpoints_of(view: &ClusterView) -> Derived<BTreeMap<Key, BTreeSet<String>>> {
    let strip = |slice: &mut EndpointSlice| {
        slice.metadata.annotations = None;
        slice.ports = None;
        for endpoint in slice.endpoints.iter_mut().flatten() {
            endpoint.addresses.clear();
            endpoint.hints = None;
        }
    };
    let slices = Api::<EndpointSlice>::all(view.client().clone());
    let slices = view.reflect("endpoint slices", slices, Config::default(), strip);
    slices.derive(read::endpoints, read::by_service)
}

/// Tells what was planned.
#[derive(Clone)]
struct Statuses {
    client: Client,
    events: Recorder,
    status: StatusLine,
    planned: watch::Receiver<Option<BTreeMap<Key, Outcome>>>,
    /// Why Services wait, as far as users were told.
    told: Arc<Mutex<HashMap<Key, String>>>,
}

impl Statuses {
    async fn update(&self, service: &Service) -> kube::Result<()> {
        let (Some(namespace), name) = (service.namespace(), service.name_any()) else { return Ok(()) };
        let key = format!("{namespace}/{name}");
        let api = Api::<Service>::namespaced(self.client.clone(), &namespace);
        if !read::is_ours(service) {
            self.settle(&key);
            return Ok(());
        }
        let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
        let mut service = service.clone();
        if let Some(patch) = without_finalizers(&service) {
            service = api.patch(&name, &params, &Patch::Merge(patch)).await?;
        }
        let outcome = self.planned.borrow().as_ref().and_then(|planned| planned.get(&key).cloned());
        // One that is being deleted, or that is newer than the plan.
        let Some(Outcome { ingress, waits }) = outcome else {
            self.settle(&key);
            return Ok(());
        };
        let before = told_addresses(&service);
        let wanted: Vec<_> = ingress.iter().map(IpAddr::to_string).collect();
        if before != wanted {
            let ingress: Vec<_> = wanted.iter().map(|ip| json!({"ip": ip})).collect();
            let patch = json!({
                "metadata": {"resourceVersion": service.metadata.resource_version},
                "status": {"loadBalancer": {"ingress": ingress}},
            });
            api.patch_status(&name, &params, &Patch::Merge(patch)).await?;
            if !wanted.is_empty() {
                info!(service = key, addresses = wanted.join(" "), "A Service is served at these addresses.");
                let note = format!("Updated LoadBalancer with new IPs: {before:?} -> {wanted:?}").replace('"', "");
                self.tell(&service, EventType::Normal, "UpdatedLoadBalancer", note).await;
            }
        }
        match waits {
            None => self.settle(&key),
            Some(waits) => {
                let why = waits.to_string();
                let is_new = self.lock().insert(key.clone(), why.clone()).is_none_or(|before| before != why);
                if is_new {
                    self.status.problem(&format!("Service {key}"), why.clone());
                    let note = format!("There are no available nodes for LoadBalancer: {why}");
                    self.tell(&service, EventType::Warning, "UnAvailableLoadBalancer", note).await;
                }
            }
        }
        Ok(())
    }

    fn settle(&self, key: &Key) {
        if self.lock().remove(key).is_some() {
            self.status.solved(&format!("Service {key}"));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One event more or less changes nothing.
    async fn tell(&self, service: &Service, type_: EventType, reason: &str, note: String) {
        let event = Event { type_, reason: reason.into(), note: Some(note), action: reason.into(), secondary: None };
        if let Err(error) = self.events.publish(&event, &service.object_ref(&())).await {
            debug!(%error, "An event could not be told.");
        }
    }
}

/// Each address and name in the status.
fn told_addresses(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.clone().or_else(|| ingress.hostname.clone())).collect()
}

fn without_finalizers(service: &Service) -> Option<Value> {
    let is_kept = |finalizer: &&String| !FINALIZERS.contains(&finalizer.as_str());
    let kept: Vec<_> = service.finalizers().iter().filter(is_kept).collect();
    (kept.len() < service.finalizers().len())
        .then(|| json!({"metadata": {"resourceVersion": service.metadata.resource_version, "finalizers": kept}}))
}

#[cfg(test)]
mod tests {
    use k3s_supervise::TaskState;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        Registry, Shared,
        fake_api::{FakeApi, supervisor},
    };

    const SERVICES: &str = "/api/v1/namespaces/d/services";

    fn service(name: &str, created: &str, port: u16) -> Value {
        json!({
            "metadata": {"namespace": "d", "name": name, "creationTimestamp": created, "finalizers": ["other", FINALIZERS[0]]},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": port}]},
        })
    }

    fn node(name: &str, address: &str, ready: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "InternalIP", "address": address}],
            },
        })
    }

    #[tokio::test]
    async fn statuses_follow_services_and_nodes() {
        let api = FakeApi::new();
        api.put("/apis/apps/v1/namespaces/kube-system/daemonsets", json!({
            "metadata": {"namespace": "kube-system", "name": "svclb-a-12345678", "labels": {"svccontroller.k3s.cattle.io/nodeselector": "false"}},
        }));
        api.put("/api/v1/nodes", node("a", "10.0.0.1", "True"));
        api.put(SERVICES, service("old", "2026-01-01T00:00:00Z", 80));
        api.put(SERVICES, service("new", "2026-01-02T00:00:00Z", 80));
        let supervisor = supervisor();
        let (_leads, leading) = watch::channel(true);
        let view = ClusterView::of_server(api.client());
        view.begin();
        let shared = Shared { client: api.client(), view, supervisor: supervisor.clone(), leads: leading };
        let mut registry = Registry::default();
        registry.add(Some(ServiceLb { namespace: "kube-system".into(), reserved: vec![(6443, "TCP")] }));
        let shutdown = CancellationToken::new();
        let told = |name: &str| {
            let service = api.get(&format!("{SERVICES}/{name}")).unwrap();
            service["status"]["loadBalancer"]["ingress"].to_string()
        };
        let story = async {
            let until = async |name: &str, expected: &str| {
                while told(name) != expected {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            until("old", r#"[{"ip":"10.0.0.1"}]"#).await;
            assert_eq!(api.get(&format!("{SERVICES}/old")).unwrap()["metadata"]["finalizers"], json!(["other"]));
            assert!(api.get("/apis/apps/v1/namespaces/kube-system/daemonsets/svclb-a-12345678").is_none());
            let why = async || {
                let status = supervisor.status().await;
                let task = status.tasks.into_iter().find(|task| task.name == "service-lb").unwrap();
                assert_eq!(task.state, TaskState::Running);
                task.problems.into_iter().map(|problem| format!("{}: {}", problem.object, problem.why)).next()
            };
            let waiting = "Service d/new: port 80/TCP is taken by the Service d/old on every node that may serve it";
            while why().await.as_deref() != Some(waiting) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            api.put("/api/v1/nodes", node("b", "10.0.0.2", "True"));
            until("old", r#"[{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}]"#).await;
            api.put("/api/v1/nodes", node("a", "10.0.0.1", "Unknown"));
            until("old", r#"[{"ip":"10.0.0.2"}]"#).await;
            api.delete(&format!("{SERVICES}/old"));
            until("new", r#"[{"ip":"10.0.0.2"}]"#).await;
            while why().await.is_some() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let events: Vec<_> = api.paths().into_iter().filter(|path| path.contains("/events/")).collect();
            assert!(!events.is_empty(), "{:?}", api.paths());
            assert_eq!(api.watches("endpointslices"), 0, "nobody asks for them");
            shutdown.cancel();
        };
        tokio::join!(registry.run(&shared, &shutdown), story);
    }
}
