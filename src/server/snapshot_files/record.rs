//! What is known of a snapshot: which it is, where it is, and whether it was taken.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k3s_config::s3::{BucketLookup, CaSource, S3Config, S3Security, S3Settings, S3Source};
use k3s_datastore::snapshot::{Label, Listed, Snapshot};
use k3s_s3::Object;
use kube::runtime::events::EventType;
use serde::{Deserialize, Serialize};

/// The storage that is a bucket, in labels of objects.
pub(super) const S3: &str = "s3";
/// Characters of an event's note that the API takes.
const LONGEST_NOTE: usize = 1000;

/// A snapshot, or the attempt to take one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// Its file's name.
    pub(super) name: String,
    /// The node that took it, or on whose disk it is.
    pub(super) node: String,
    pub(super) place: SnapshotPlace,
    pub(super) created: Timestamp,
    pub(super) outcome: Outcome,
    /// What users wanted to be noted beside it.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Where it is, or should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SnapshotPlace {
    /// On the disk of the node that took it: nowhere if it was not taken.
    Disk(Option<PathBuf>),
    /// In a bucket.
    Bucket { location: String, bucket: BucketPlace },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Saved { bytes: u64, token_hash: Option<String> },
    Failed(String),
}

/// A bucket, without what opens it: as k3s writes it into objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BucketPlace {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) endpoint: String,
    #[serde(rename = "endpointCA", skip_serializing_if = "String::is_empty")]
    pub(super) endpoint_ca: String,
    #[serde(rename = "skipSSLVerify", skip_serializing_if = "is_off")]
    pub(super) skip_ssl_verify: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) bucket: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) bucket_lookup: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) region: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) prefix: String,
    #[serde(skip_serializing_if = "is_off")]
    pub(super) insecure: bool,
}

impl SnapshotRecord {
    /// A file on the disk of `node`, where it may have been fetched to; `None` if it is no snapshot.
    pub(super) fn on_disk(listed: &Listed, node: &str) -> Option<Self> {
        let label = listed.label.as_ref()?;
        Some(Self {
            node: node.to_owned(),
            place: SnapshotPlace::Disk(Some(listed.path.clone())),
            outcome: Outcome::Saved { bytes: listed.bytes, token_hash: Some(label.token_hash.clone()) },
            ..Self::labelled(&listed.name, label)
        })
    }

    /// The copy in a bucket, of `bytes`, of a snapshot that is on this disk too.
    pub(super) fn copied(name: &str, label: &Label, bytes: u64, place: SnapshotPlace) -> Self {
        let outcome = Outcome::Saved { bytes, token_hash: Some(label.token_hash.clone()) };
        Self { place, outcome, ..Self::labelled(name, label) }
    }

    /// A file in a bucket of which no more is known than what is noted there.
    pub(super) fn noted(file: &Object, node: String, token_hash: Option<String>, place: SnapshotPlace) -> Self {
        Self {
            name: file.name.clone(),
            node,
            place,
            created: time_in(&file.name).or(file.modified).unwrap_or_default(),
            outcome: Outcome::Saved { bytes: file.bytes, token_hash },
            metadata: BTreeMap::new(),
        }
    }

    /// What users are told of it: type and reason of the event, and the sentence, as k3s has them.
    pub(super) fn event(&self) -> ((EventType, &'static str), String) {
        let Self { name, outcome, .. } = self;
        match outcome {
            Outcome::Saved { .. } => {
                ((EventType::Normal, "ETCDSnapshotCreated"), format!("Snapshot {name} saved on {}", self.storage()))
            }
            Outcome::Failed(why) => {
                let note = format!("Failed to save snapshot {name} on {}: {why}", self.storage());
                ((EventType::Warning, "ETCDSnapshotFailed"), note.chars().take(LONGEST_NOTE).collect())
            }
        }
    }

    /// The node whose disk it is on, or `s3`.
    pub(super) fn storage(&self) -> &str {
        if self.place.is_bucket() { S3 } else { &self.node }
    }

    fn labelled(name: &str, label: &Label) -> Self {
        Self {
            name: name.to_owned(),
            node: label.node.clone(),
            place: SnapshotPlace::Disk(None),
            created: at(label.created),
            outcome: Outcome::Failed(String::new()),
            metadata: label.metadata.clone(),
        }
    }

    /// A snapshot whose name begins with `<name>-<node>` that could not be taken.
    pub(crate) fn not_taken(name: &str, node: &str, why: String) -> Self {
        let created = at(Timestamp::now().as_second().unsigned_abs());
        Self {
            name: format!("{name}-{node}-{}", created.as_second()),
            node: node.to_owned(),
            place: SnapshotPlace::Disk(None),
            created,
            outcome: Outcome::Failed(why),
            metadata: BTreeMap::new(),
        }
    }

    /// A snapshot on the disk that could not be put into the bucket.
    pub(crate) fn not_uploaded(snapshot: &Snapshot, s3: &S3Config, why: String) -> Self {
        let name = snapshot.name();
        let place = SnapshotPlace::wanted(s3, &name);
        Self { place, outcome: Outcome::Failed(why), ..Self::labelled(&name, &snapshot.label) }
    }
}

impl SnapshotPlace {
    /// Where a snapshot should be in the bucket; of which little is known before its Secret is read.
    fn wanted(s3: &S3Config, name: &str) -> Self {
        match &s3.source {
            S3Source::Settings(settings) => BucketPlace::of(settings).place(name),
            S3Source::Secret(_) => Self::Bucket { location: String::new(), bucket: BucketPlace::default() },
        }
    }

    pub(super) fn is_bucket(&self) -> bool {
        matches!(self, Self::Bucket { .. })
    }

    /// As a URL; empty if it is nowhere.
    pub(super) fn location(&self) -> String {
        match self {
            Self::Disk(path) => path.as_deref().map(file_url).unwrap_or_default(),
            Self::Bucket { location, .. } => location.clone(),
        }
    }
}

impl BucketPlace {
    pub(crate) fn of(settings: &S3Settings) -> Self {
        let path_of = |source: &CaSource| match source {
            CaSource::File(path) => Some(path.display().to_string()),
            CaSource::Pem(_) => None,
        };
        let endpoint_ca = match &settings.security {
            S3Security::Verified(sources) => sources.iter().filter_map(path_of).collect::<Vec<_>>().join(" "),
            S3Security::Unverified | S3Security::Plain => String::new(),
        };
        let bucket_lookup = match settings.lookup {
            // What is so anyway is not said.
            BucketLookup::Auto => "",
            BucketLookup::Dns => "dns",
            BucketLookup::Path => "path",
        };
        Self {
            endpoint: settings.endpoint.to_string(),
            endpoint_ca,
            skip_ssl_verify: matches!(settings.security, S3Security::Unverified),
            bucket: settings.bucket.clone(),
            bucket_lookup: bucket_lookup.to_owned(),
            region: settings.region.clone(),
            prefix: settings.folder.clone(),
            insecure: matches!(settings.security, S3Security::Plain),
        }
    }

    /// Where a file of this name is in it.
    pub(crate) fn place(self, name: &str) -> SnapshotPlace {
        let folder = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        SnapshotPlace::Bucket { location: format!("s3://{}/{folder}{name}", self.bucket), bucket: self }
    }
}

/// The time that ends a snapshot's name.
pub(super) fn time_in(name: &str) -> Option<Timestamp> {
    // k3s' own compressed ones are zip.
    let name = [".zst", ".zip"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    let (_, digits) = name.rsplit_once('-')?;
    Timestamp::from_second(digits.parse().ok()?).ok()
}

fn at(unix: u64) -> Timestamp {
    i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn is_off(switch: &bool) -> bool {
    !switch
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn on_disk(name: &str, node: &str) -> SnapshotRecord {
        SnapshotRecord {
            name: name.to_owned(),
            node: node.to_owned(),
            place: SnapshotPlace::Disk(Some(Path::new("/s").join(name))),
            created: Timestamp::from_second(1_795_000_000).unwrap(),
            outcome: Outcome::Saved { bytes: 4500, token_hash: Some("1ec1c26b50d5".to_owned()) },
            metadata: BTreeMap::new(),
        }
    }

    pub(crate) fn in_bucket(name: &str, node: &str) -> SnapshotRecord {
        let bucket = BucketPlace { bucket: "backups".into(), prefix: "site".into(), ..BucketPlace::default() };
        SnapshotRecord { place: bucket.place(name), ..on_disk(name, node) }
    }

    #[test]
    fn a_name_ends_in_its_time() {
        let expected = Timestamp::from_second(1_795_000_000).ok();
        for name in ["on-demand-edge-7-1795000000", "daily-1795000000.zst", "daily-1795000000.zip"] {
            assert_eq!(time_in(name), expected, "{name}");
        }
        for name in ["notes", "notes-7a", "notes-99999999999999999999"] {
            assert_eq!(time_in(name), None, "{name}");
        }
    }
}
