//! What has to change so that the objects agree with what there is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::{
    object::{EtcdSnapshotFile, failed_at, is_ready, name, storage},
    record::{S3, SnapshotRecord},
};

/// How long users can read why a snapshot failed, as in k3s.
const ERROR_STAYS: SignedDuration = SignedDuration::from_hours(24);

/// What there is.
pub(super) struct Found<'a> {
    /// This server's node.
    pub(super) node: &'a str,
    /// The nodes of all servers that keep snapshots on their disks; `None` if not all are known.
    pub(super) nodes: Option<BTreeSet<String>>,
    /// What is on this server's disk.
    pub(super) on_disk: Vec<SnapshotRecord>,
    /// Where each file of the bucket is, by its name; `None` if that is not known, or there is no bucket.
    pub(super) in_bucket: Option<BTreeMap<String, String>>,
}

/// What has to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Snapshots on the disk that no object tells of.
    pub(super) write: Vec<SnapshotRecord>,
    /// Names of files in the bucket that no object tells of, once it is known what they are.
    pub(super) look_up: Vec<String>,
    /// Names of objects whose snapshot is gone.
    pub(super) delete: Vec<String>,
}

impl Found<'_> {
    /// `objects` were listed before all that was found: one whose file is not found has lost it.
    pub(super) fn plan(self, objects: &[EtcdSnapshotFile], now: Timestamp) -> Plan {
        let mut on_disk: BTreeMap<_, _> = self.on_disk.into_iter().map(|record| (name(&record), record)).collect();
        let mut in_bucket = self.in_bucket;
        let mut delete = Vec::new();
        for object in objects {
            let (object_name, file) = (object.name_any(), &object.spec.snapshot_name);
            let is_there = match (storage(object), &in_bucket) {
                (Some(S3), Some(files)) => files.get(file) == Some(&object.spec.location),
                (Some(S3), None) | (None, _) => continue,
                (Some(node), _) if node == self.node => on_disk.contains_key(&object_name),
                (Some(node), _) => {
                    // Nobody can restore it: if its server comes back, that one tells of it again.
                    if self.nodes.as_ref().is_some_and(|nodes| !nodes.contains(node)) {
                        delete.push(object_name);
                    }
                    continue;
                }
            };
            let has_news = |failed: Timestamp| now.duration_since(failed) < ERROR_STAYS;
            match (is_there, is_ready(object)) {
                (true, true) => {
                    on_disk.remove(&object_name);
                    if let Some(files) = in_bucket.as_mut().filter(|_| storage(object) == Some(S3)) {
                        files.remove(file);
                    }
                }
                // It failed before, and is told of anew.
                (true, false) => {}
                (false, _) if failed_at(object).is_some_and(has_news) => {}
                (false, _) => delete.push(object_name),
            }
        }
        Plan {
            write: on_disk.into_values().collect(),
            look_up: in_bucket.unwrap_or_default().into_keys().collect(),
            delete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            object::object,
            record::{
                Outcome,
                tests::{in_bucket, on_disk},
            },
        },
        *,
    };

    fn found<'a>(disk: &[&SnapshotRecord], bucket: Option<&[&SnapshotRecord]>) -> Found<'a> {
        let entry = |record: &&SnapshotRecord| (record.name.clone(), record.place.location());
        Found {
            node: "one",
            nodes: Some(["one", "two"].map(str::to_owned).into()),
            on_disk: disk.iter().map(|record| (*record).clone()).collect(),
            in_bucket: bucket.map(|records| records.iter().map(entry).collect()),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_795_000_060).unwrap()
    }

    fn failed(record: &SnapshotRecord) -> SnapshotRecord {
        SnapshotRecord { outcome: Outcome::Failed("the disk is full".into()), ..record.clone() }
    }

    #[test]
    fn objects_follow_the_files() {
        let (kept, new, gone) = (on_disk("a-one-1", "one"), on_disk("a-one-2", "one"), on_disk("a-one-0", "one"));
        let (in_s3, new_in_s3, gone_of_s3) =
            (in_bucket("a-one-1", "one"), in_bucket("a-two-1", "two"), in_bucket("a-two-0", "two"));
        let objects = [&kept, &gone, &in_s3, &gone_of_s3].map(object);
        let plan = found(&[&kept, &new], Some(&[&in_s3, &new_in_s3])).plan(&objects, now());
        let expected = Plan {
            write: vec![new.clone()],
            look_up: vec![new_in_s3.name],
            delete: vec![name(&gone), name(&gone_of_s3)],
        };
        assert_eq!(plan, expected);
        let silent = found(&[&kept, &new], None).plan(&objects, now());
        assert_eq!(silent, Plan { write: vec![new], look_up: vec![], delete: vec![name(&gone)] }, "S3 does not answer");
    }

    #[test]
    fn servers_look_after_their_own_disks_and_after_what_no_server_has() {
        let objects = [on_disk("a-two-1", "two"), on_disk("a-three-1", "three")].map(|record| object(&record));
        let plan = found(&[], None).plan(&objects, now());
        assert_eq!(plan.delete, [objects[1].name_any()]);
        let unknown = Found { nodes: None, ..found(&[], None) };
        assert_eq!(unknown.plan(&objects, now()), Plan::default(), "the members do not answer");
    }

    #[test]
    fn a_failure_is_told_for_a_day_or_until_it_was_made_good() {
        let (disk, bucket) = (failed(&on_disk("a-one-1", "one")), failed(&in_bucket("a-one-1", "one")));
        let objects = [&disk, &bucket].map(object);
        assert_eq!(found(&[], Some(&[])).plan(&objects, now()), Plan::default());
        let later = now() + SignedDuration::from_hours(24);
        assert_eq!(found(&[], Some(&[])).plan(&objects, later).delete, [name(&disk), name(&bucket)]);
        let uploaded = found(&[], Some(&[&bucket])).plan(&objects, now());
        assert_eq!(uploaded, Plan { look_up: vec![bucket.name], ..Plan::default() });
    }
}
