//! What a local-path provisioner that is not wanted any more leaves: the pods by which it makes and deletes folders on nodes. It deletes
//! each when its work is done, and none any more once it is gone itself.

use std::time::Duration;

use k3s_supervise::{Backoff, TaskError};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Preconditions},
};
use tokio::time::Instant;
use tracing::info;

use crate::{Context, Controller, Place};

const NAMESPACE: &str = "kube-system";
/// The pods of the provisioner and those that help it, as in `manifests/local-storage.yaml`.
const SELECTED: &str = "spec.serviceAccountName=local-path-provisioner-service-account";
/// How long a pod may still work: the provisioner itself waits no longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Whoever uses that account after so long is no provisioner of ours.
const LONGEST: Duration = Duration::from_secs(600);
/// Between looks at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Deletes the helper pods where local storage is switched off (`--disable=local-storage`). It works once, until there are none.
#[derive(Debug, Clone, Copy)]
pub struct RetiredLocalStorage;

impl Controller for RetiredLocalStorage {
    const NAME: &'static str = "local-storage";
    const PLACE: Place = Place::Leader;

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let api = Api::<Pod>::namespaced(context.client.clone(), NAMESPACE);
        let (begun, mut backoff) = (Instant::now(), Backoff::between(PAUSES.0, PAUSES.1));
        while begun.elapsed() < LONGEST {
            let pods = api.list(&ListParams::default().fields(SELECTED)).await?.items;
            if pods.is_empty() {
                break;
            }
            for pod in pods.iter().filter(|pod| is_left(pod, begun.elapsed())) {
                let only_this = Preconditions { uid: pod.uid(), resource_version: None };
                match api.delete(&pod.name_any(), &DeleteParams::background().preconditions(only_this)).await {
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    result => drop(result?),
                }
                info!(pod = pod.name_any(), "Deleted a pod that local storage has left.");
            }
            backoff.wait().await;
        }
        Ok(())
    }
}

/// Whether a pod helped the provisioner, and helps no more: the provisioner's own go with their Deployment.
fn is_left(pod: &Pod, waited: Duration) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.owner_references().is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && (matches!(phase, Some("Succeeded" | "Failed")) || waited >= PATIENCE)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn helpers_go_when_their_work_is_done_or_nobody_waits_for_it() {
        let pod = |phase: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "helper"}, "status": {"phase": phase}}))
                .unwrap()
        };
        for (phase, waited, expected) in [
            ("Succeeded", Duration::ZERO, true),
            ("Failed", Duration::ZERO, true),
            ("Running", Duration::ZERO, false),
            ("Pending", PATIENCE, true),
        ] {
            assert_eq!(is_left(&pod(phase), waited), expected, "{phase}");
        }
        let mut owned = pod("Succeeded");
        owned.metadata.owner_references = Some(vec![OwnerReference::default()]);
        assert!(!is_left(&owned, PATIENCE), "it goes with its Deployment");
    }
}
