//! Where the `kubernetes` Service leads: to the front, not to kube-apiserver's own port, which only loopback reaches. Servers write it,
//! agents follow it.
//!
//! kube-apiserver can only publish the port that it listens on itself, so it runs with `--endpoint-reconciler-type=none` and this
//! writes what it would have written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    pin::pin,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::{
    core::v1::Endpoints,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::backoff::{Backoff, log_broken_watch};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Publishes `address` as the one endpoint of the `kubernetes` Service; tries until it is written or `shutdown` falls. Writing what is
/// there already changes nothing.
pub async fn publish_api_endpoint(client: Client, address: SocketAddr, shutdown: CancellationToken) {
    let publish = async {
        let mut backoff = Backoff::default();
        while let Err(error) = apply(&client, address).await {
            debug!(%error, "The API's endpoint could not be published; trying again.");
            backoff.wait().await;
        }
        info!(%address, "Pods reach the API here.");
    };
    shutdown.run_until_cancelled(publish).await;
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

async fn apply(client: &Client, address: SocketAddr) -> kube::Result<()> {
    let params = PatchParams::apply("k3s").force();
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let ip = address.ip();
    // The Endpoints are for clients that know no slices yet; mirroring them would make a second slice.
    let old = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": ip}],
            "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
        }],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
    });
    slices.patch(NAME, &params, &Patch::Apply(slice)).await?;
    endpoints.patch(NAME, &params, &Patch::Apply(old)).await?;
    Ok(())
}
