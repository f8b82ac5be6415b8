//! Where the `kubernetes` Service leads: to the front, not to kube-apiserver's own port, which only loopback reaches. Servers write it,
//! agents follow it.
//!
//! kube-apiserver can only publish the port that it listens on itself, so it runs with `--endpoint-reconciler-type=none` and this
//! writes what it would have written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    pin::pin,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::Endpoints,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    api_servers::{ADDRESS, ApiServers, SELECTOR, Sight},
    backoff::{Backoff, log_broken_watch},
};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Labels of slices.
const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Publishes `address` as the one endpoint of the `kubernetes` Service; tries until it is written or `shutdown` falls. Writing what is
/// there already changes nothing.
pub async fn publish_api_endpoint(client: Client, address: SocketAddr, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(publish(&client, &BTreeSet::from([address]))).await;
}

/// Publishes the fronts of all servers that live, of which `own` is one, until `shutdown`. Each server of the cluster does the same, and
/// what they see makes them write the same. `hostname` is the machine's, by which kube-apiserver marks its lease: no two servers may have
/// the same.
pub async fn publish_api_endpoints(client: Client, own: SocketAddr, hostname: String, shutdown: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let of_servers = watcher::Config::default().labels(SELECTOR);
    let mut events = pin!(watcher(leases.clone(), of_servers).backoff(Backoff::default()));
    let mut servers = ApiServers::new(own, hostname);
    let mut published = BTreeSet::new();
    let follow = async {
        loop {
            let event = match servers.next_end(Instant::now()) {
                Some(end) => timeout_at(end, events.next()).await.ok(),
                None => Some(events.next().await),
            };
            match event {
                // Somebody has been silent for too long.
                None => {}
                Some(None) => return,
                Some(Some(Ok(Event::Init))) => servers.begin(),
                Some(Some(Ok(Event::InitDone))) => servers.complete(),
                Some(Some(Ok(Event::Delete(lease)))) => servers.forget(&lease),
                Some(Some(Ok(Event::Apply(lease) | Event::InitApply(lease)))) => {
                    match servers.see(&lease, Instant::now()) {
                        Sight::Known => {}
                        Sight::OwnWithoutAddress => write_address(&leases, &lease.name_any(), own).await,
                    }
                }
                Some(Some(Err(error))) => log_broken_watch("the servers' leases", &error),
            }
            if let Some(alive) = servers.alive(Instant::now()).filter(|alive| *alive != published) {
                publish(&client, &alive).await;
                published = alive;
            }
        }
    };
    shutdown.run_until_cancelled(follow).await;
}

/// Tells the other servers where this one's front is. A lease that was renewed meanwhile is seen again, and written then.
async fn write_address(leases: &Api<Lease>, lease: &str, own: SocketAddr) {
    let patch = json!({"metadata": {"annotations": {ADDRESS: own.to_string()}}});
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    if let Err(error) = leases.patch(lease, &params, &Patch::Merge(patch)).await {
        debug!(%error, lease, "The server's lease could not be marked; trying again when it is renewed.");
    }
}

async fn publish(client: &Client, addresses: &BTreeSet<SocketAddr>) {
    let mut backoff = Backoff::default();
    while let Err(error) = apply(client, addresses).await {
        debug!(%error, "The API's endpoints could not be published; trying again.");
        backoff.wait().await;
    }
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    info!(addresses, "Pods reach the API here.");
}

/// Tells where the API is served, whenever that changes, for as long as it is polled; never an empty set. `system:k3s-controller` may
/// read it.
pub async fn follow_api_endpoints(client: Client, mut changed: impl FnMut(BTreeSet<SocketAddr>)) {
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let of_service = watcher::Config::default().labels("kubernetes.io/service-name=kubernetes");
    let mut events = pin!(watcher(slices, of_service).backoff(Backoff::default()));
    let mut known: BTreeMap<String, BTreeSet<SocketAddr>> = BTreeMap::new();
    let mut told = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                known.clear();
                continue;
            }
            Ok(Event::InitApply(slice)) => {
                known.insert(slice.name_any(), addresses(&slice));
                continue;
            }
            Ok(Event::InitDone) => {}
            Ok(Event::Apply(slice)) => drop(known.insert(slice.name_any(), addresses(&slice))),
            Ok(Event::Delete(slice)) => drop(known.remove(&slice.name_any())),
            Err(error) => {
                log_broken_watch("the servers", &error);
                continue;
            }
        }
        let now: BTreeSet<SocketAddr> = known.values().flatten().copied().collect();
        if !now.is_empty() && now != told {
            told.clone_from(&now);
            changed(now);
        }
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
    use super::*;

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
}
