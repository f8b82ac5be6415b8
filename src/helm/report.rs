//! What users are told of a HelmChart: conditions and events by k3s' names.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::{Value, json};
use tracing::debug;

use crate::chart::HelmChart;

/// Characters of an event's note that the API takes.
const LONGEST_NOTE: usize = 1000;

/// How a HelmChart stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Helm works on it, or has done what there was to do.
    Applied,
    /// Helm failed and is asked again: as with k3s' jobs, it has not failed as long as that goes on.
    Retrying(String),
    /// It cannot be worked on as it is.
    Unusable(String),
    /// Helm failed and is not asked again.
    Failed(String),
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happening {
    Applying {
        source: String,
        job: String,
    },
    Removing {
        job: String,
    },
    Removed,
    /// A revision was interrupted.
    Forgot {
        revision: u64,
    },
    /// Helm failed and is asked again.
    Retrying {
        why: String,
    },
    /// Helm failed, for good.
    Failed {
        why: String,
    },
    Unusable {
        why: String,
    },
    Ignored {
        fields: String,
    },
}

impl Happening {
    fn event(&self) -> Event {
        let (type_, reason, note) = match self {
            Self::Applying { source, job } => {
                (EventType::Normal, "ApplyJob", format!("Applying HelmChart from {source} using Job {job}"))
            }
            Self::Removing { job } => {
                (EventType::Normal, "RemoveJob", format!("Uninstalling HelmChart using Job {job}"))
            }
            Self::Removed => (EventType::Normal, "RemoveJob", "Uninstalled HelmChart, removing resources".to_owned()),
            Self::Forgot { revision } => (
                EventType::Normal,
                "Interrupted",
                format!("Revision {revision} was interrupted: it is taken back and made again"),
            ),
            Self::Retrying { why } => (EventType::Warning, "RetryJob", format!("{why}; trying again")),
            Self::Failed { why } => (EventType::Warning, "JobFailed", why.clone()),
            Self::Unusable { why } => (EventType::Warning, "Unusable", why.clone()),
            Self::Ignored { fields } => {
                (EventType::Warning, "FieldsIgnored", format!("These fields have no effect: {fields}"))
            }
        };
        Event { type_, reason: reason.into(), note: Some(cut(&note)), action: reason.into(), secondary: None }
    }
}

/// Tells of one HelmChart.
pub(crate) struct Report<'a> {
    charts: Api<HelmChart>,
    events: &'a Recorder,
    name: String,
    reference: ObjectReference,
    status: Value,
}

impl<'a> Report<'a> {
    pub(crate) fn of(chart: &HelmChart, client: &Client, events: &'a Recorder) -> Self {
        let mut reference = chart.object_ref(&());
        reference.resource_version = chart.resource_version();
        Self {
            charts: Api::namespaced(client.clone(), &chart.namespace().unwrap_or_default()),
            events,
            name: chart.name_any(),
            reference,
            status: chart.status.clone(),
        }
    }

    /// Whether its status says that Helm failed for good.
    pub(crate) fn has_failed(&self) -> bool {
        let is_so = |condition: &Value| condition["type"] == "Failed" && condition["reason"] == "Job failed";
        self.status["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(is_so))
    }

    /// Makes an event of it. One more or less changes nothing.
    pub(crate) async fn tell(&self, happening: &Happening) {
        if let Err(error) = self.events.publish(&happening.event(), &self.reference).await {
            debug!(chart = self.name, %error, "An event could not be told.");
        }
    }

    /// Makes its status say so, if it does not; `job` is the name of the Job that one looks at.
    ///
    /// # Errors
    /// If the API refuses.
    pub(crate) async fn set(&mut self, condition: &Condition, job: &str) -> kube::Result<()> {
        let status = status(condition, self.reference.namespace.as_deref().unwrap_or_default(), job);
        if self.status["jobName"] == status["jobName"] && self.status["conditions"] == status["conditions"] {
            return Ok(());
        }
        let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
        match self.charts.patch_status(&self.name, &params, &Patch::Merge(json!({"status": status}))).await {
            // Deleted meanwhile: there is nobody left to tell.
            Err(kube::Error::Api(error)) if error.code == 404 => {}
            patched => drop(patched?),
        }
        self.status = status;
        Ok(())
    }
}

fn status(condition: &Condition, namespace: &str, job: &str) -> Value {
    let created = |is: bool| match is {
        true => json!({
            "type": "JobCreated", "status": "True", "reason": "Job created",
            "message": format!("Applying HelmChart using Job {namespace}/{job}"),
        }),
        false => json!({"type": "JobCreated", "status": "False"}),
    };
    let failed =
        |reason: &str, why: &str| json!({"type": "Failed", "status": "True", "reason": reason, "message": cut(why)});
    let conditions = match condition {
        Condition::Applied => [created(true), json!({"type": "Failed", "status": "False"})],
        Condition::Retrying(why) => {
            [created(true), json!({"type": "Failed", "status": "False", "reason": "Retrying", "message": cut(why)})]
        }
        Condition::Unusable(why) => [created(false), failed("Job create failed", why)],
        Condition::Failed(why) => [created(true), failed("Job failed", why)],
    };
    json!({"jobName": job, "conditions": conditions})
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST_NOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_those_of_k3s() {
        assert_eq!(
            status(&Condition::Applied, "kube-system", "helm-install-app"),
            json!({
                "jobName": "helm-install-app",
                "conditions": [
                    {
                        "type": "JobCreated", "status": "True", "reason": "Job created",
                        "message": "Applying HelmChart using Job kube-system/helm-install-app",
                    },
                    {"type": "Failed", "status": "False"},
                ],
            })
        );
        let failed =
            |condition: Condition| status(&condition, "kube-system", "helm-install-app")["conditions"][1].clone();
        let given_up = failed(Condition::Failed("no".into()));
        assert_eq!((&given_up["status"], &given_up["message"]), (&json!("True"), &json!("no")));
        let retrying = failed(Condition::Retrying("no".into()));
        assert_eq!((&retrying["status"], &retrying["message"]), (&json!("False"), &json!("no")));
    }

    #[test]
    fn notes_are_as_long_as_the_api_takes_them() {
        let event = Happening::Failed { why: "ü".repeat(5000) }.event();
        assert_eq!(event.note.unwrap().chars().count(), LONGEST_NOTE);
    }
}
