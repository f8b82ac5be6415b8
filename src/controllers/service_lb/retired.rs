//! What a load balancer that is not wanted any more leaves: addresses in Services that nobody serves, and k3s' pods, which take ports.

use std::{collections::BTreeSet, net::IpAddr};

use k3s_supervise::TaskError;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Service},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tracing::info;

use super::{read, told_addresses};
use crate::{Context, Controller, Place};

/// What k3s' DaemonSets are known by.
const OF_K3S: &str = "svccontroller.k3s.cattle.io/nodeselector";

/// Takes back what the load balancer has told, where it is switched off (`--disable=servicelb`). It works once.
#[derive(Debug, Clone)]
pub struct RetiredServiceLb {
    /// Where k3s' own load balancer had its pods (`--servicelb-namespace`).
    pub namespace: String,
}

impl Controller for RetiredServiceLb {
    const NAME: &'static str = "service-lb";
    const PLACE: Place = Place::Leader;

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        delete_pods(&context.client, &self.namespace).await?;
        let nodes = Api::<Node>::all(context.client.clone()).list(&ListParams::default()).await?;
        let own: BTreeSet<_> = nodes.iter().flat_map(addresses).collect();
        let balanced = ListParams::default().fields("spec.type=LoadBalancer");
        let services = Api::<Service>::all(context.client.clone()).list(&balanced).await?;
        for service in services {
            let (Some(namespace), Some(patch)) = (service.namespace(), taken_back(&service, &own)) else { continue };
            let api = Api::<Service>::namespaced(context.client.clone(), &namespace);
            let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
            let name = service.name_any();
            api.patch_status(&name, &params, &Patch::Merge(patch)).await?;
            info!(service = format!("{namespace}/{name}"), "A Service is not served at nodes' addresses any more.");
        }
        Ok(())
    }
}

/// Deletes the DaemonSets of k3s' load balancer.
pub(super) async fn delete_pods(client: &Client, namespace: &str) -> kube::Result<()> {
    let api = Api::<DaemonSet>::namespaced(client.clone(), namespace);
    for set in api.list(&ListParams::default().labels(OF_K3S)).await? {
        let name = set.name_any();
        match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => drop(result?),
        }
        info!(namespace, daemon_set = name, "Deleted pods of k3s' load balancer; no Service needs any.");
    }
    Ok(())
}

/// The change to a Service whose addresses are all nodes' own: other load balancers have addresses of their own.
fn taken_back(service: &Service, nodes: &BTreeSet<IpAddr>) -> Option<Value> {
    let told = told_addresses(service);
    let is_own = |address: &String| address.parse().is_ok_and(|address| nodes.contains(&address));
    let is_ours = read::is_ours(service) && !told.is_empty() && told.iter().all(is_own);
    is_ours.then(|| {
        json!({
            "metadata": {"resourceVersion": service.metadata.resource_version},
            "status": {"loadBalancer": {"ingress": null}},
        })
    })
}

fn addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    addresses.filter_map(|address| address.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nodes_have_is_taken_back() {
        let nodes = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap()).into();
        for (class, ingress, expected) in [
            (Value::Null, json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]), true),
            (Value::Null, json!([{"ip": "10.0.0.1"}, {"ip": "192.0.2.1"}]), false),
            (Value::Null, json!([{"hostname": "lb.example"}]), false),
            (Value::Null, json!([]), false),
            ("example.com/lb".into(), json!([{"ip": "10.0.0.1"}]), false),
        ] {
            let service: Service = serde_json::from_value(json!({
                "metadata": {"name": "s", "resourceVersion": "3"},
                "spec": {"type": "LoadBalancer", "loadBalancerClass": class},
                "status": {"loadBalancer": {"ingress": ingress}},
            }))
            .unwrap();
            assert_eq!(taken_back(&service, &nodes).is_some(), expected, "{service:?}");
        }
    }
}
