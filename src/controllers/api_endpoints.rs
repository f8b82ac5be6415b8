//! Where the `kubernetes` Service leads: to the front, not to kube-apiserver's own port, which only loopback reaches.
//!
//! kube-apiserver can only publish the port that it listens on itself, so it runs with `--endpoint-reconciler-type=none` and this
//! writes what it would have written.

use std::net::SocketAddr;

use k8s_openapi::api::{core::v1::Endpoints, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::backoff::Backoff;

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
