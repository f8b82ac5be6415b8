//! The node of this machine, with the kubelet's own rights: they are there on servers and agents alike, and end at this node.

use std::time::Duration;

use jiff::Timestamp;
use k3s_components::Paths;
use k3s_os::News;
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{Event, EventSource, Node, ObjectReference, Pod},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{
    Api, Client, ResourceExt as _,
    api::{EvictParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tracing::info;

/// Between two looks at what is left.
const PAUSE: Duration = Duration::from_secs(2);
/// Of pods that are files of this machine.
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) struct OwnNode {
    client: Client,
    name: String,
}

impl OwnNode {
    /// None on a server without a node.
    pub(super) async fn connect(paths: &Paths) -> Result<Option<Self>, String> {
        let kubeconfig = paths.kubelet_kubeconfig();
        if !kubeconfig.exists() {
            return Ok(None);
        }
        let client = k3s_agent::client(&kubeconfig).await.map_err(|error| error.to_string())?;
        let review = Api::<SelfSubjectReview>::all(client.clone())
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await
            .map_err(|error| unanswered(&error))?;
        let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
        match user.strip_prefix("system:node:") {
            Some(name) => Ok(Some(Self { client, name: name.to_owned() })),
            None => Err(format!("{} is of {user}, which is no node", kubeconfig.display())),
        }
    }

    /// Whether the cluster has it as Ready; what keeps it from that is the error.
    pub(super) async fn require_ready(&self) -> Result<(), String> {
        let conditions = self.get().await?.status.and_then(|status| status.conditions).unwrap_or_default();
        match conditions.iter().find(|condition| condition.type_ == "Ready") {
            Some(ready) if ready.status == "True" => Ok(()),
            Some(ready) => {
                let why = ready.message.as_deref().unwrap_or("it does not say why");
                Err(format!("the node {} is not Ready ({why})", self.name))
            }
            None => Err(format!("the node {} is not Ready yet", self.name)),
        }
    }

    /// Whether new pods stay away from it.
    pub(super) async fn is_cordoned(&self) -> Result<bool, String> {
        Ok(self.get().await?.spec.and_then(|spec| spec.unschedulable).unwrap_or(false))
    }

    /// Has the cluster show `news` among the node's events.
    pub(super) async fn tell(&self, news: &News) -> Result<(), String> {
        let now = Some(Time(Timestamp::now()));
        let event = Event {
            metadata: ObjectMeta { generate_name: Some(format!("{}.", self.name)), ..ObjectMeta::default() },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(self.name.clone()),
                uid: self.get().await?.metadata.uid,
                ..ObjectReference::default()
            },
            reason: Some(news.reason.clone()),
            message: Some(news.message.clone()),
            type_: Some("Warning".into()),
            source: Some(EventSource { component: Some("k3s".into()), host: Some(self.name.clone()) }),
            first_timestamp: now.clone(),
            last_timestamp: now,
            count: Some(1),
            ..Event::default()
        };
        // Where those of objects without a namespace are looked for.
        let events = Api::<Event>::namespaced(self.client.clone(), "default");
        events.create(&PostParams::default(), &event).await.map(|_| ()).map_err(|error| unanswered(&error))
    }

    /// Keeps new pods away, or no longer.
    pub(super) async fn cordon(&self, cordoned: bool) -> Result<(), String> {
        let patch = json!({"spec": {"unschedulable": cordoned}});
        let nodes = self.nodes();
        let patched = nodes.patch(&self.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        patched.map(|_| ()).map_err(|error| unanswered(&error))
    }

    /// Evicts what `kubectl drain --ignore-daemonsets --delete-emptydir-data --force` evicts, as budgets allow it, and waits until it has gone.
    pub(super) async fn drain(&self, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.name));
        loop {
            let pods = Api::<Pod>::all(self.client.clone()).list(&here).await.map_err(|error| unanswered(&error))?;
            let left: Vec<_> = pods.items.into_iter().filter(is_evicted).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let names: Vec<_> = left
                    .iter()
                    .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
                    .collect();
                return Err(format!("{} did not leave within {} s", names.join(", "), limit.as_secs()));
            }
            for pod in left.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                self.evict(pod).await?;
            }
            sleep(PAUSE).await;
        }
    }

    async fn evict(&self, pod: &Pod) -> Result<(), String> {
        let namespace = pod.namespace().unwrap_or_default();
        let pods = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        match pods.evict(&pod.name_any(), &EvictParams::default()).await {
            Ok(_) => {
                info!(pod = %format_args!("{namespace}/{}", pod.name_any()), "Evicted a pod.");
                Ok(())
            }
            // Gone, or a budget that does not allow it now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 429) => Ok(()),
            Err(error) => Err(unanswered(&error)),
        }
    }

    async fn get(&self) -> Result<Node, String> {
        self.nodes().get(&self.name).await.map_err(|error| unanswered(&error))
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }
}

fn unanswered(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API refuses: {}", status.message),
        error => format!("the API does not answer ({error})"),
    }
}

/// Not what comes back at once, and not what has ended.
fn is_evicted(pod: &Pod) -> bool {
    let of_daemon_set =
        pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let has_ended = matches!(phase, Some("Succeeded" | "Failed"));
    !of_daemon_set && !has_ended && !pod.annotations().contains_key(MIRROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_a_drain_is_for_are_evicted() {
        let pod = |metadata: serde_json::Value, phase: &str| {
            serde_json::from_value::<Pod>(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
        };
        let owned = |kind: &str| json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "1", "controller": true}]});
        assert!(is_evicted(&pod(json!({}), "Running")));
        assert!(is_evicted(&pod(owned("ReplicaSet"), "Pending")));
        assert!(!is_evicted(&pod(owned("DaemonSet"), "Running")));
        assert!(!is_evicted(&pod(owned("Job"), "Succeeded")));
        assert!(!is_evicted(&pod(json!({"annotations": {MIRROR: "x"}}), "Running")));
    }
}
