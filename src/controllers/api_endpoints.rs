//! Where the `kubernetes` Service leads: to the front, not to kube-apiserver's own port, which only loopback reaches. Servers write it,
//! agents follow it.
//!
//! kube-apiserver can only publish the port that it listens on itself, so it runs with `--endpoint-reconciler-type=none` and this
//! writes what it would have written.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::{IpAddr, SocketAddr},
};

use k3s_supervise::TaskError;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::Endpoints,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::watcher::Config,
};
use serde_json::{Value, json};
use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use crate::{
    ClusterView, Context, Controller, Derived,
    api_servers::{ADDRESS, ApiServers, SELECTOR, ServerLease},
    backoff::{self, Failure},
    view::Reflector,
};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Labels of slices.
const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Publishes where the API is served, and again whenever somebody changes that or deletes it.
#[derive(Debug)]
pub struct ApiEndpoints {
    /// Where this server's front is.
    pub own: SocketAddr,
    /// The machine's name, by which kube-apiserver marks its lease, where servers share a cluster: then the fronts of all that live are
    /// published, and no two of them may have the same name. Each does the same, and what they see makes them write the same.
    pub shared_as: Option<String>,
}

impl Controller for ApiEndpoints {
    const NAME: &'static str = "api-endpoints";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let mut published = Published::follow(&context.view);
        let leases: Api<Lease> = Api::namespaced(context.client.clone(), "kube-system");
        let mut servers = Servers::follow(self, &context.view, &leases);
        let mut told = BTreeSet::new();
        let mut backoff = backoff::of_api();
        let mut retry = false;
        loop {
            select! {
                () = servers.changed(&leases) => {}
                () = published.changed() => {}
                () = backoff.wait(), if retry => {}
            }
            let Some(addresses) = servers.alive() else { continue };
            retry = match published.differs_from(&addresses) {
                false => false,
                true => match apply(&context.client, &addresses).await {
                    Ok(()) => {
                        context.status.solved(OBJECT);
                        backoff.begin_anew();
                        if addresses != told {
                            let sentence = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                            info!(addresses = sentence, "Pods reach the API here.");
                            told = addresses;
                        } else {
                            info!("Somebody had changed where pods reach the API; it is as before.");
                        }
                        false
                    }
                    Err(error) => {
                        if Failure::of(&error) == Failure::Refused {
                            context.status.problem(OBJECT, format!("the API refuses its endpoints: {error}"));
                        }
                        debug!(%error, "The API's endpoints could not be published; trying again.");
                        true
                    }
                },
            };
        }
    }
}

/// As the status names what this writes.
const OBJECT: &str = "Service default/kubernetes";

/// Who serves the API.
enum Servers {
    /// This server alone; whether that was told.
    One(SocketAddr, bool),
    Several {
        servers: ApiServers,
        leases: Derived<BTreeMap<String, ServerLease>>,
        own: SocketAddr,
    },
}

impl Servers {
    fn follow(controller: &ApiEndpoints, view: &ClusterView, leases: &Api<Lease>) -> Self {
        let own = controller.own;
        let Some(hostname) = controller.shared_as.clone() else { return Self::One(own, false) };
        let of_servers = Config::default().labels(SELECTOR);
        let leases = view.reflect("the servers' leases", leases.clone(), of_servers, |_| {});
        let leases = leases.derive(|lease| Some(ServerLease::of(lease)), by_name);
        Self::Several { servers: ApiServers::new(own, hostname), leases, own }
    }

    /// Comes back when the answer may be another.
    async fn changed(&mut self, api: &Api<Lease>) {
        match self {
            Self::One(_, true) => pending().await,
            Self::One(_, told) => *told = true,
            Self::Several { servers, leases, own } => {
                let silence = servers.next_end(Instant::now());
                let silent = async {
                    match silence {
                        Some(end) => sleep_until(end).await,
                        None => pending().await,
                    }
                };
                select! {
                    leases = leases.changed() => {
                        if let Some(unmarked) = servers.observe(leases, Instant::now()) {
                            write_address(api, &unmarked, *own).await;
                        }
                    }
                    () = silent => {}
                }
            }
        }
    }

    fn alive(&self) -> Option<BTreeSet<SocketAddr>> {
        match self {
            Self::One(own, _) => Some(BTreeSet::from([*own])),
            Self::Several { servers, .. } => servers.alive(Instant::now()),
        }
    }
}

fn by_name<T: Clone>(objects: &BTreeMap<String, T>) -> BTreeMap<String, T> {
    let name = |key: &String| key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name).to_owned();
    objects.iter().map(|(key, value)| (name(key), value.clone())).collect()
}

/// Tells the other servers where this one's front is. A lease that was renewed meanwhile is seen again, and written then.
async fn write_address(leases: &Api<Lease>, lease: &str, own: SocketAddr) {
    let patch = json!({"metadata": {"annotations": {ADDRESS: own.to_string()}}});
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    if let Err(error) = leases.patch(lease, &params, &Patch::Merge(patch)).await {
        debug!(%error, lease, "The server's lease could not be marked; trying again when it is renewed.");
    }
}

/// What there is of the `kubernetes` Service's endpoints.
struct Published {
    slices: Derived<BTreeMap<String, Value>>,
    endpoints: Derived<Option<Value>>,
}

impl Published {
    fn follow(view: &ClusterView) -> Self {
        let endpoints = Api::<Endpoints>::namespaced(view.client().clone(), NAMESPACE);
        let own = Config::default().fields(&format!("metadata.name={NAME}"));
        let endpoints = view.reflect("the API's endpoints", endpoints, own, |_| {});
        let ours = |slice: &EndpointSlice| slice.labels().get(MANAGED_BY).is_some_and(|by| by == "k3s");
        Self {
            slices: slices(view).derive(move |slice| ours(slice).then(|| content(slice, SLICE)), by_name),
            endpoints: endpoints
                .derive(|object| Some(content(object, ENDPOINTS)), |endpoints| endpoints.values().next().cloned()),
        }
    }

    async fn changed(&mut self) {
        select! {
            _ = self.slices.changed() => {}
            _ = self.endpoints.changed() => {}
        }
    }

    /// Whether something else is there, as far as that is known.
    fn differs_from(&self, addresses: &BTreeSet<SocketAddr>) -> bool {
        let (Some(slices), Some(endpoints)) = (self.slices.current(), self.endpoints.current()) else { return false };
        let wanted = slices_of(addresses).into_iter().map(|(name, slice)| (name, content(&slice, SLICE))).collect();
        slices != wanted || endpoints != Some(content(&endpoints_of(addresses), ENDPOINTS))
    }
}

/// The fields that count of each kind.
const SLICE: &[&str] = &["addressType", "endpoints", "ports"];
const ENDPOINTS: &[&str] = &["subsets"];

fn content(object: &impl k8s_openapi::serde::Serialize, fields: &[&str]) -> Value {
    let mut object = serde_json::to_value(object).unwrap_or_default();
    fields.iter().map(|field| ((*field).to_owned(), object[*field].take())).collect::<serde_json::Map<_, _>>().into()
}

/// The slices of the `kubernetes` Service.
fn slices(view: &ClusterView) -> Reflector<EndpointSlice> {
    let slices = Api::<EndpointSlice>::namespaced(view.client().clone(), NAMESPACE);
    view.reflect("the API's endpoint slices", slices, Config::default().labels(&format!("{SERVICE}={NAME}")), |_| {})
}

impl ClusterView {
    /// Where the API is served, as the endpoints of the `kubernetes` Service tell; empty before the first server has published it.
    /// `system:k3s-controller` may read it.
    pub fn api_endpoints(&self) -> Derived<BTreeSet<SocketAddr>> {
        slices(self).derive(|slice| Some(addresses(slice)), |slices| slices.values().flatten().copied().collect())
    }
}

/// Those that are not known to be unready, on the port called `https`.
fn addresses(slice: &EndpointSlice) -> BTreeSet<SocketAddr> {
    let ports = slice.ports.iter().flatten().filter(|port| port.name.as_deref() == Some("https"));
    let ports: Vec<u16> = ports.filter_map(|port| port.port?.try_into().ok()).collect();
    let ready = |endpoint: &&Endpoint| endpoint.conditions.as_ref().and_then(|it| it.ready) != Some(false);
    let ips = slice.endpoints.iter().flatten().filter(ready).flat_map(|endpoint| &endpoint.addresses);
    ips.filter_map(|ip| ip.parse().ok())
        .flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)))
        .collect()
}

async fn apply(client: &Client, addresses: &BTreeSet<SocketAddr>) -> kube::Result<()> {
    let params = PatchParams::apply("k3s").force();
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted = slices_of(addresses);
    for (name, slice) in &wanted {
        slices.patch(name, &params, &Patch::Apply(slice)).await?;
    }
    endpoints.patch(NAME, &params, &Patch::Apply(endpoints_of(addresses))).await?;
    let ours = ListParams::default().labels(&format!("{SERVICE}={NAME},{MANAGED_BY}=k3s"));
    for slice in slices.list_metadata(&ours).await? {
        let name = slice.name_any();
        if !wanted.contains_key(&name) {
            slices.delete(&name, &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

/// A slice has addresses of one family on one port: the first is called as kube-apiserver calls its only one.
fn slices_of(addresses: &BTreeSet<SocketAddr>) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<(&str, u16), Vec<IpAddr>> = BTreeMap::new();
    for address in addresses {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        groups.entry((family, address.port())).or_default().push(address.ip());
    }
    let slice = |(index, ((family, port), ips)): (usize, ((&str, u16), Vec<IpAddr>))| {
        let name = match index {
            0 => NAME.to_owned(),
            _ => format!("{NAME}-{}-{port}", family.to_lowercase()),
        };
        let endpoints: Vec<_> =
            ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {SERVICE: NAME, MANAGED_BY: "k3s"}},
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        });
        (name, slice)
    };
    groups.into_iter().enumerate().map(slice).collect()
}

/// The Endpoints are for clients that know no slices yet; mirroring them would make further slices.
fn endpoints_of(addresses: &BTreeSet<SocketAddr>) -> Value {
    let mut ports: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for address in addresses {
        ports.entry(address.port()).or_default().push(json!({"ip": address.ip()}));
    }
    let subset = |(port, addresses): (u16, Vec<Value>)| json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": ports.into_iter().map(subset).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        Registry, Shared,
        fake_api::{FakeApi, supervisor},
    };

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn servers_on_one_port_are_one_slice() {
        let addresses = set(&["10.0.0.2:6443", "10.0.0.1:6443"]);
        let slices = slices_of(&addresses);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes"]);
        assert_eq!(
            slices["kubernetes"]["endpoints"],
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
            ])
        );
        let subsets = &endpoints_of(&addresses)["subsets"];
        let ports = json!([{"name": "https", "port": 6443, "protocol": "TCP"}]);
        assert_eq!(*subsets, json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": ports}]));
    }

    #[test]
    fn what_is_published_is_what_is_read() {
        let published = set(&["10.0.0.1:6443", "10.0.0.2:7443", "[fd00::1]:6443"]);
        let slices = slices_of(&published);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-ipv4-7443", "kubernetes-ipv6-6443"]);
        let read = slices.into_values().flat_map(|slice| addresses(&serde_json::from_value(slice).unwrap()));
        assert_eq!(read.collect::<BTreeSet<_>>(), published);
    }

    #[tokio::test]
    async fn what_somebody_deletes_or_changes_is_there_again() {
        let api = FakeApi::new();
        let supervisor = supervisor();
        let shared = Shared {
            client: api.client(),
            view: ClusterView::of_server(api.client()),
            supervisor,
            leads: tokio::sync::watch::channel(true).1,
        };
        let mut registry = Registry::default();
        registry.add(Some(ApiEndpoints { own: "10.0.0.1:6443".parse().unwrap(), shared_as: None }));
        shared.view.begin();
        let shutdown = CancellationToken::new();
        let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        let endpoints = "/api/v1/namespaces/default/endpoints/kubernetes";
        let story = async {
            let until_published = async || {
                let is_there = |path: &str, pointer: &str| {
                    api.get(path).is_some_and(|object| object.pointer(pointer).is_some_and(|ip| ip == "10.0.0.1"))
                };
                for _ in 0..6000 {
                    if is_there(slice, "/endpoints/0/addresses/0") && is_there(endpoints, "/subsets/0/addresses/0/ip") {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                panic!("the endpoints are not there");
            };
            until_published().await;
            api.delete(slice);
            until_published().await;
            let mut changed = api.get(slice).unwrap();
            changed["endpoints"][0]["addresses"] = json!(["192.0.2.9"]);
            api.put("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", changed);
            until_published().await;
            api.delete(endpoints);
            until_published().await;
            shutdown.cancel();
        };
        tokio::join!(registry.run(&shared, &shutdown), story);
    }
}
