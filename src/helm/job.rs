//! The Job that users and scripts of k3s look at: `kubectl wait --for=condition=complete job/helm-install-traefik`.
//!
//! It has no pod: `spec.managedBy` keeps Kubernetes' own controller away from it, and what it says is said here. It goes with its HelmChart.

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::{chart::HelmChart, decision::Step, release::HASH, retired::is_of};

/// Who carries it out.
const MANAGER: &str = "k3s.cattle.io/helm-controller";
/// On k3s' jobs and pods: whose they are.
const CHART: &str = "helmcharts.helm.cattle.io/chart";

/// What a Job shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Running { failed: u32 },
    Complete { failed: u32 },
    Failed { failed: u32 },
}

/// One Job. What goes wrong with it changes nothing but what is shown.
pub(crate) struct Shown {
    jobs: Api<Job>,
    name: String,
    object: Value,
    started: Timestamp,
    /// Whether somebody else's Job has its name, which is left alone.
    is_taken: bool,
}

/// k3s' names.
pub(crate) fn name(chart: &HelmChart, step: Step) -> String {
    let action = if step == Step::Uninstall { "delete" } else { "install" };
    format!("helm-{action}-{}", chart.name_any())
}

/// Says of a Job that was left running that it is complete: its release is there.
pub(crate) async fn complete_interrupted(chart: &HelmChart, client: &Client) {
    let name = name(chart, Step::Install);
    let jobs: Api<Job> = Api::namespaced(client.clone(), &chart.namespace().unwrap_or_default());
    let Ok(Some(found)) = jobs.get_opt(&name).await else { return };
    if !is_ours(&found) || has_ended(&found) {
        return;
    }
    let started = found.status.and_then(|status| status.start_time).map_or_else(now, |time| time.0);
    Shown { jobs, name, object: Value::Null, started, is_taken: false }.show(Progress::Complete { failed: 0 }).await;
}

fn is_ours(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()) == Some(MANAGER)
}

/// Whether it says that nothing more becomes of it.
pub(crate) fn has_ended(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| matches!(&*condition.type_, "Complete" | "Failed"))
}

impl Shown {
    /// The Job of `chart` for what has this `hash`, in the place of an earlier one.
    pub(crate) async fn begin(chart: &HelmChart, client: &Client, step: Step, hash: &str, failed: u32) -> Self {
        let namespace = chart.namespace().unwrap_or_default();
        let name = name(chart, step);
        let mut shown = Self {
            jobs: Api::namespaced(client.clone(), &namespace),
            object: object(chart, &name, hash),
            name,
            started: now(),
            is_taken: false,
        };
        if let Err(error) = shown.replace(chart, hash).await {
            debug!(job = shown.name, %error, "A Job cannot be shown.");
        }
        shown.show(Progress::Running { failed }).await;
        shown
    }

    /// What it shows now.
    pub(crate) async fn show(&self, progress: Progress) {
        if self.is_taken {
            return;
        }
        let status = status(progress, self.started, now());
        let patch = Patch::Merge(json!({"status": status}));
        if let Err(error) = self.jobs.patch_status(&self.name, &PatchParams::default(), &patch).await {
            debug!(job = self.name, %error, "A Job cannot be shown.");
        }
    }

    /// A Job that has ended stays so; another try of the same goes on with it.
    async fn replace(&mut self, chart: &HelmChart, hash: &str) -> kube::Result<()> {
        if let Some(found) = self.jobs.get_opt(&self.name).await? {
            if !is_ours(&found) && !is_of(&found, chart) {
                warn!(
                    chart = chart.title(),
                    job = self.name,
                    "A Job of somebody else has the name of that which shows what Helm does; it is left alone."
                );
                self.is_taken = true;
                return Ok(());
            }
            let is_same = found.annotations().get(HASH).is_some_and(|found| found == hash);
            if is_ours(&found) && is_same && !has_ended(&found) {
                // Immutable once it has begun.
                if let Some(started) = found.status.and_then(|status| status.start_time) {
                    self.started = started.0;
                }
                return Ok(());
            }
            self.jobs.delete(&self.name, &DeleteParams::background()).await?;
        }
        let job = serde_json::from_value(self.object.clone()).map_err(kube::Error::SerdeError)?;
        self.jobs.create(&PostParams::default(), &job).await.map(drop)
    }
}

/// The API keeps whole seconds, and refuses another start than the one it has.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn object(chart: &HelmChart, name: &str, hash: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {CHART: chart.name_any()},
            "annotations": {HASH: hash},
            "ownerReferences": Vec::from_iter(chart.owner_ref(&())),
        },
        "spec": {
            "managedBy": MANAGER,
            "backoffLimit": chart.spec["backOffLimit"].as_u64().unwrap_or(1000),
            "template": {
                "metadata": {"labels": {CHART: chart.name_any()}},
                // It is never run: the API wants one.
                "spec": {"restartPolicy": "Never", "containers": [{"name": "helm", "image": "helm"}]},
            },
        },
    })
}

/// What the API wants to see of a Job in each state.
fn status(progress: Progress, started: Timestamp, now: Timestamp) -> Value {
    let conditions = |types: [&str; 2]| {
        types.map(|type_| {
            json!({
                "type": type_, "status": "True", "lastTransitionTime": now, "lastProbeTime": now,
                "reason": if types[1] == "Complete" { "CompletionsReached" } else { "BackoffLimitExceeded" },
            })
        })
    };
    let none = json!({"failed": [], "succeeded": []});
    match progress {
        Progress::Running { failed } => json!({
            "startTime": started, "active": 1, "ready": 1, "failed": failed, "uncountedTerminatedPods": none,
        }),
        Progress::Complete { failed } => json!({
            "startTime": started, "completionTime": now, "active": null, "ready": 0, "succeeded": 1, "failed": failed,
            "uncountedTerminatedPods": none, "conditions": conditions(["SuccessCriteriaMet", "Complete"]),
        }),
        Progress::Failed { failed } => json!({
            "startTime": started, "active": null, "ready": 0, "failed": failed,
            "uncountedTerminatedPods": none, "conditions": conditions(["FailureTarget", "Failed"]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::tests::chart;

    #[test]
    fn a_job_has_the_names_of_k3s_and_no_pod() {
        let chart = chart(json!({"chart": "oci://r.lan/app", "backOffLimit": 3}));
        assert_eq!(name(&chart, Step::Upgrade), "helm-install-app");
        assert_eq!(name(&chart, Step::Uninstall), "helm-delete-app");
        let job: Job = serde_json::from_value(object(&chart, "helm-install-app", "A1")).unwrap();
        assert_eq!(job.labels()[CHART], "app");
        let spec = job.spec.unwrap();
        assert_eq!((spec.managed_by.as_deref(), spec.backoff_limit), (Some(MANAGER), Some(3)));
    }

    #[test]
    fn a_job_that_is_complete_says_when() {
        let (started, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let complete = status(Progress::Complete { failed: 2 }, started, now);
        assert_eq!((&complete["succeeded"], &complete["failed"]), (&json!(1), &json!(2)));
        assert_eq!(complete["completionTime"], "1970-01-01T00:01:00Z");
        assert_eq!(complete["conditions"][1]["type"], "Complete");
        assert_eq!(status(Progress::Failed { failed: 1 }, started, now)["conditions"][1]["type"], "Failed");
    }
}
