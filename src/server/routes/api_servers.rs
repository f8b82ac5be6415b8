//! `/v1-k3s/apiservers`: where nodes reach the API, as the cluster itself knows it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, api::ListParams};
use tracing::debug;

/// An agent waits 10 s for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The endpoints of the `kubernetes` Service; none while there is no API, or it does not answer in time.
pub(super) async fn list(client: Option<Client>) -> BTreeSet<SocketAddr> {
    let Some(client) = client else { return BTreeSet::new() };
    let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
    let selected = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    match tokio::time::timeout(TIMEOUT, slices.list(&selected)).await {
        Ok(Ok(slices)) => addresses(&slices.items),
        Ok(Err(error)) => {
            debug!(%error, "The API's addresses are not known.");
            BTreeSet::new()
        }
        Err(_) => {
            debug!("The API did not tell its addresses in time.");
            BTreeSet::new()
        }
    }
}

/// Each ready endpoint at the port called `https`.
fn addresses(slices: &[EndpointSlice]) -> BTreeSet<SocketAddr> {
    let of = |slice: &EndpointSlice| {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let https = ports.iter().find(|port| port.name.as_deref() == Some("https"));
        let port = https.and_then(|port| u16::try_from(port.port?).ok());
        let ready =
            slice.endpoints.iter().flatten().filter(|endpoint| {
                endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
            });
        let ips = ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse::<IpAddr>().ok());
        let ips: Vec<IpAddr> = ips.collect();
        ips.into_iter().filter_map(move |ip| Some(SocketAddr::new(ip, port?)))
    };
    slices.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_endpoints_of_all_slices() {
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {
                "addressType": "IPv4", "metadata": {},
                "endpoints": [
                    {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
                    {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
                    {"addresses": ["192.0.2.3"]},
                ],
                "ports": [{"name": "https", "port": 6443}],
            },
            {
                "addressType": "IPv6", "metadata": {},
                "endpoints": [{"addresses": ["2001:db8::1"], "conditions": {}}],
                "ports": [{"name": "other", "port": 1}, {"name": "https", "port": 6444}],
            },
            {"addressType": "FQDN", "metadata": {}, "endpoints": [{"addresses": ["a.example"]}], "ports": []},
        ]))
        .unwrap();
        let found: Vec<String> = addresses(&slices).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:6443", "192.0.2.3:6443", "[2001:db8::1]:6444"]);
    }

    #[tokio::test]
    async fn without_an_api_there_are_none() {
        assert!(list(None).await.is_empty());
    }
}
