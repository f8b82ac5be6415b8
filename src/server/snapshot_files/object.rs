//! The objects that tell of snapshots: k3s' `ETCDSnapshotFile`, with its names, labels and fields
//! (`k3s-io/api` `k3s.cattle.io/v1/types.go`, `pkg/etcd/snapshot/types.go`).

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString};
use kube::{
    ResourceExt as _,
    core::{ApiResource, GroupVersionKind, Object},
};
use serde::{Deserialize, Serialize};

use super::record::{BucketPlace, Outcome, SnapshotPlace, SnapshotRecord};

/// Says which node's disk has the file; `s3` for a bucket.
pub(super) const STORAGE: &str = "etcd.k3s.cattle.io/snapshot-storage-node";
/// Says which token opens it.
const TOKEN_HASH: &str = "etcd.k3s.cattle.io/snapshot-token-hash";
/// What a name of an object has beside that of its file, at most: `local-`, `-` and six digits.
const ADDED: usize = 13;
/// As long as a name of an object can be.
const LONGEST_NAME: usize = 253;
/// Characters of an error that an object has.
const LONGEST_ERROR: usize = 1000;

/// One of them.
pub(super) type EtcdSnapshotFile = Object<Spec, Status>;

/// Which snapshot it is, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) snapshot_name: String,
    pub(super) node_name: String,
    pub(super) location: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) s3: Option<BucketPlace>,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) creation_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<StatusError>,
}

/// Why it is not ready.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StatusError {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
}

/// The kind, as the API knows it.
pub(super) fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("k3s.cattle.io", "v1", "ETCDSnapshotFile"),
        "etcdsnapshotfiles",
    )
}

/// Where the file of an object is: a node's name, or `s3`.
pub(super) fn storage(object: &EtcdSnapshotFile) -> Option<&str> {
    object.labels().get(STORAGE).map(String::as_str)
}

/// Whether an object says that its snapshot can be restored.
pub(super) fn is_ready(object: &EtcdSnapshotFile) -> bool {
    object.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
}

/// The object that tells of `record`.
pub(super) fn object(record: &SnapshotRecord) -> EtcdSnapshotFile {
    let s3 = match &record.place {
        SnapshotPlace::Disk(_) => None,
        SnapshotPlace::Bucket { bucket, .. } => Some(bucket.clone()),
    };
    let spec = Spec {
        snapshot_name: record.name.clone(),
        node_name: record.node.clone(),
        location: record.place.location(),
        metadata: record.metadata.clone(),
        s3,
    };
    let mut object = EtcdSnapshotFile::new(&name(record), &resource(), spec);
    object.labels_mut().insert(STORAGE.to_owned(), record.storage().to_owned());
    let created = Some(Time(record.created));
    let (bytes, error) = match &record.outcome {
        Outcome::Saved { bytes, token_hash } => {
            let token_hash = token_hash.iter().map(|hash| (TOKEN_HASH.to_owned(), hash.clone()));
            object.annotations_mut().extend(token_hash);
            (*bytes, None)
        }
        Outcome::Failed(why) => {
            let message = Some(why.chars().take(LONGEST_ERROR).collect());
            (0, Some(StatusError { time: created.clone(), message }))
        }
    };
    object.status = Some(Status {
        size: Some(IntOrString::String(bytes.to_string())),
        creation_time: created,
        ready_to_use: Some(error.is_none()),
        error,
    });
    object
}

/// Six digits of what no two files have in common follow the file's name, if that can be part of an object's.
pub(super) fn name(record: &SnapshotRecord) -> String {
    let SnapshotRecord { name, node, place, created, .. } = record;
    let digest = digest(&SHA256, format!("{node}{}", place.location()).as_bytes());
    let digits = &HEXLOWER.encode(digest.as_ref())[..6];
    let prefix = if place.is_bucket() { "s3" } else { "local" };
    let lowercase = name.to_lowercase();
    let name = if is_subdomain(&lowercase) && lowercase.len() + ADDED <= LONGEST_NAME {
        lowercase
    } else {
        let node = node.split('.').next().unwrap_or_default();
        let suffix = if name.ends_with(".zst") { ".zst" } else { "" };
        format!("etcd-snapshot-{node}-{}{suffix}", created.as_second())
    };
    format!("{prefix}-{name}-{digits}")
}

/// What Kubernetes takes for a name: labels of a DNS name.
fn is_subdomain(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    name.split('.').map(str::as_bytes).all(|label| {
        let plain = label.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-');
        plain && is_end(label.first()) && is_end(label.last())
    })
}

/// When the error of an object was met.
pub(super) fn failed_at(object: &EtcdSnapshotFile) -> Option<Timestamp> {
    object.status.as_ref()?.error.as_ref()?.time.as_ref().map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{in_bucket, on_disk};
    use super::*;

    #[test]
    fn an_object_says_what_k3s_says() {
        let object = serde_json::to_value(object(&on_disk("on-demand-edge-7-1795000000", "edge-7"))).unwrap();
        assert_eq!(
            object,
            serde_json::json!({
                "apiVersion": "k3s.cattle.io/v1",
                "kind": "ETCDSnapshotFile",
                "metadata": {
                    // The digits: printf edge-7file:///s/on-demand-edge-7-1795000000 | sha256sum | cut -c1-6
                    "name": "local-on-demand-edge-7-1795000000-51abd7",
                    "labels": {"etcd.k3s.cattle.io/snapshot-storage-node": "edge-7"},
                    "annotations": {"etcd.k3s.cattle.io/snapshot-token-hash": "1ec1c26b50d5"},
                },
                "spec": {
                    "snapshotName": "on-demand-edge-7-1795000000",
                    "nodeName": "edge-7",
                    "location": "file:///s/on-demand-edge-7-1795000000",
                },
                "status": {"size": "4500", "creationTime": "2026-11-18T11:06:40Z", "readyToUse": true},
            })
        );
    }

    #[test]
    fn one_in_a_bucket_has_the_bucket_and_one_that_failed_the_reason() {
        let mut record = in_bucket("daily-edge-7-1795000000", "edge-7");
        record.outcome = Outcome::Failed("there is no bucket".to_owned());
        let object = serde_json::to_value(object(&record)).unwrap();
        assert_eq!(object["metadata"]["labels"][STORAGE], "s3");
        assert_eq!(object["metadata"]["annotations"], serde_json::Value::Null);
        assert_eq!(object["spec"]["s3"]["bucket"], "backups");
        assert_eq!(object["spec"]["s3"]["endpointCA"], serde_json::Value::Null, "as little as k3s says");
        assert_eq!((&object["status"]["readyToUse"], &object["status"]["size"]), (&false.into(), &"0".into()));
        assert_eq!(object["status"]["error"]["message"], "there is no bucket");
    }

    #[test]
    fn a_file_whose_name_is_none_for_objects_is_named_by_node_and_time() {
        let named = |file: &str| name(&on_disk(file, "edge-7.example.com"));
        assert!(named("Nightly-1").starts_with("local-nightly-1-"), "{}", named("Nightly-1"));
        for (file, expected) in [
            ("a_b", "local-etcd-snapshot-edge-7-1795000000-".to_owned()),
            (&format!("{}.zst", "a".repeat(250)), "local-etcd-snapshot-edge-7-1795000000.zst-".to_owned()),
        ] {
            assert!(named(file).starts_with(&expected), "{}", named(file));
        }
    }
}
