//! Helm's records of a release: one Secret or ConfigMap a revision, of which only the metadata is read.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Preconditions},
};

use crate::{chart::Driver, wanted::Target};

/// On a record: what it was made of. The label of k3s' jobs.
pub(crate) const HASH: &str = "helmcharts.helm.cattle.io/configHash";

/// The last revision of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) revision: u64,
    pub(crate) status: Status,
    /// What it was made of; `None` where somebody else made it.
    pub(crate) hash: Option<String>,
    /// When it was last written, in seconds of Unix time.
    pub(crate) written: i64,
    /// The record's own name and version.
    pub(crate) record: (String, Option<String>),
}

/// What Helm says of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Deployed,
    Superseded,
    Failed,
    Uninstalling,
    /// Gone, with its records kept.
    Uninstalled,
    /// An install, upgrade or rollback runs, or was interrupted.
    Pending,
    Unknown,
}

impl Status {
    fn parse(text: &str) -> Self {
        match text {
            "deployed" => Self::Deployed,
            "superseded" => Self::Superseded,
            "failed" => Self::Failed,
            "uninstalling" => Self::Uninstalling,
            "uninstalled" => Self::Uninstalled,
            "pending-install" | "pending-upgrade" | "pending-rollback" => Self::Pending,
            _ => Self::Unknown,
        }
    }
}

impl Release {
    /// Of a record's metadata; `None` if it is none.
    fn of(metadata: &ObjectMeta) -> Option<Self> {
        let label = |key: &str| metadata.labels.as_ref()?.get(key);
        let created = metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let labelled = ["createdAt", "modifiedAt"].into_iter().filter_map(|key| label(key)?.parse().ok());
        Some(Self {
            revision: label("version")?.parse().ok()?,
            status: Status::parse(label("status")?),
            hash: label(HASH).cloned(),
            written: labelled.fold(created, i64::max),
            record: (metadata.name.clone()?, metadata.resource_version.clone()),
        })
    }

    #[cfg(test)]
    pub(crate) fn example(status: Status, hash: &str) -> Self {
        Self { revision: 1, status, hash: Some(hash.into()), written: 0, record: ("record".into(), None) }
    }
}

/// The records of one release.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    driver: Driver,
    name: String,
}

impl Records {
    pub(crate) fn of(client: &Client, target: &Target) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &target.namespace),
            config_maps: Api::namespaced(client.clone(), &target.namespace),
            driver: target.driver,
            name: target.name.clone(),
        }
    }

    /// The last revision, if there is any.
    ///
    /// # Errors
    /// If the API does not answer.
    pub(crate) async fn last(&self) -> kube::Result<Option<Release>> {
        let params = ListParams::default().labels(&format!("owner=helm,name={}", self.name));
        let metadata: Vec<_> = match self.driver {
            Driver::Secret => {
                let records = self.secrets.list_metadata(&params.fields("type=helm.sh/release.v1")).await?;
                records.items.into_iter().map(|record| record.metadata).collect()
            }
            Driver::ConfigMap => {
                let records = self.config_maps.list_metadata(&params).await?;
                records.items.into_iter().map(|record| record.metadata).collect()
            }
        };
        Ok(last(&metadata))
    }

    /// Deletes the record of an interrupted revision, unless it has changed meanwhile: then Helm has gone on with it.
    ///
    /// # Errors
    /// If the API refuses.
    pub(crate) async fn forget(&self, release: &Release) -> kube::Result<()> {
        let (name, version) = &release.record;
        let preconditions = Preconditions { resource_version: version.clone(), uid: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = match self.driver {
            Driver::Secret => self.secrets.delete(name, &params).await.map(drop),
            Driver::ConfigMap => self.config_maps.delete(name, &params).await.map(drop),
        };
        match deleted {
            // Gone, or changed: whoever asks looks again.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            deleted => deleted,
        }
    }
}

fn last(records: &[ObjectMeta]) -> Option<Release> {
    records.iter().filter_map(Release::of).max_by_key(|release| release.revision)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(version: &str, status: &str) -> ObjectMeta {
        serde_json::from_value(json!({
            "name": format!("sh.helm.release.v1.app.v{version}"),
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"owner": "helm", "name": "app", "version": version, "status": status, "createdAt": "1767225700", HASH: "A1"},
        }))
        .unwrap()
    }

    #[test]
    fn the_highest_revision_is_the_last() {
        let records =
            [record("9", "superseded"), record("10", "deployed"), record("x", "deployed"), ObjectMeta::default()];
        let release = last(&records).unwrap();
        assert_eq!((release.revision, release.status, release.hash.as_deref()), (10, Status::Deployed, Some("A1")));
        assert_eq!(release.written, 1_767_225_700);
        assert_eq!(last(&[]), None);
    }

    #[test]
    fn every_interrupted_step_is_pending() {
        for status in ["pending-install", "pending-upgrade", "pending-rollback"] {
            assert_eq!(last(&[record("1", status)]).unwrap().status, Status::Pending);
        }
        assert_eq!(last(&[record("1", "odd")]).unwrap().status, Status::Unknown);
    }
}
