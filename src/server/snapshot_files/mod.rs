//! Objects that tell of snapshots: `kubectl get etcdsnapshotfiles`, as k3s has them (`pkg/etcd/snapshot.go`).
//!
//! ```text
//! save, upload, prune, delete ─────────► notices ──┐
//! --etcd-snapshot-reconcile-interval ──────────────┴─► objects, then files ─► plan ─► objects
//! ```
//! Each server looks after the files on its own disk, and in its bucket. Files are what counts: an object that was deleted by hand comes
//! back, and takes no file along.

mod notices;
mod object;
mod plan;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k3s_components::Paths;
use k3s_config::snapshots::SnapshotConfig;
use k3s_controllers::{Context, Controller, set_annotations};
use k3s_datastore::{
    Error as DatastoreError,
    snapshot::{Listed, SnapshotFolder},
};
use k3s_s3::Object;
use k3s_supervise::{Backoff, TaskError};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use tokio::{select, task::spawn_blocking, time::sleep};
use tracing::debug;

pub(crate) use self::{
    notices::SnapshotNotices,
    record::{BucketPlace, SnapshotPlace, SnapshotRecord},
};
use self::{
    object::{EtcdSnapshotFile, is_ready, resource},
    plan::{Found, Plan},
    record::S3,
};
use crate::{Error, SnapshotBucket, etcd::Membership};

/// No objects are made of more files in a bucket than the newest of this count.
const MOST_IN_BUCKET: usize = 1000;
/// Objects that are read at a time.
const PAGE: u32 = 500;
/// Between looks for the kind's definition, which comes with the manifests: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// As the status names the bucket.
const BUCKET: &str = "S3";
/// On a Node: since when the objects of its snapshots are right, and those in S3.
const RECONCILED: [&str; 2] =
    ["etcd.k3s.cattle.io/local-snapshots-timestamp", "etcd.k3s.cattle.io/s3-snapshots-timestamp"];

/// Writes and deletes them.
pub(crate) struct SnapshotFiles {
    pub(crate) config: SnapshotConfig,
    pub(crate) paths: Paths,
    /// The server's name, which is in the names of its snapshots.
    pub(crate) server: String,
    /// The node that the server also is.
    pub(crate) own_node: Option<String>,
    /// This server's member of etcd, where it is one.
    pub(crate) member: Option<Arc<Membership>>,
    pub(crate) notices: Arc<SnapshotNotices>,
}

impl Controller for SnapshotFiles {
    const NAME: &'static str = "snapshot-files";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let objects = Objects::new(&context);
        let (mut backoff, mut is_noted) = (Backoff::between(PAUSES.0, PAUSES.1), false);
        loop {
            let Some(listed) = objects.list().await? else {
                context.status.set("waiting for the definition of ETCDSnapshotFile");
                backoff.wait().await;
                continue;
            };
            let has_changed = self.reconcile(&objects, &listed).await?;
            context.status.set("the objects are right");
            if has_changed || !is_noted {
                self.note(&context).await;
                is_noted = true;
            }
            select! {
                () = self.notices.changed() => {}
                () = sleep(self.config.reconcile_interval) => {}
            }
        }
    }
}

impl SnapshotFiles {
    /// Makes the objects agree with what there is; says whether one of them has changed.
    async fn reconcile(&self, objects: &Objects<'_>, listed: &[EtcdSnapshotFile]) -> Result<bool, TaskError> {
        let mut has_changed = false;
        while let Some(failure) = self.notices.failure() {
            objects.write(&failure, listed).await?;
            self.notices.told(&failure);
            has_changed = true;
        }
        let folder = SnapshotFolder::new(&self.config.folder);
        // A panic of it is in the log.
        let on_disk = spawn_blocking(move || folder.list()).await.map_err(|_| DatastoreError::Closed)??;
        let bucket = self.bucket(objects.context).await;
        let found = Found {
            node: &self.server,
            nodes: self.nodes().await,
            on_disk: on_disk.iter().filter_map(|listed| SnapshotRecord::on_disk(listed, &self.server)).collect(),
            in_bucket: bucket.as_ref().map(|(bucket, files)| {
                files.keys().map(|name| (name.clone(), bucket.location(name))).collect::<BTreeMap<_, _>>()
            }),
        };
        let Plan { write, look_up, delete } = found.plan(listed, Timestamp::now());
        has_changed |= !write.is_empty() || !delete.is_empty();
        for object in listed.iter().filter(|object| delete.contains(&object.name_any())) {
            objects.delete(object).await?;
        }
        for record in &write {
            objects.write(record, listed).await?;
        }
        let Some((bucket, files)) = bucket else { return Ok(has_changed) };
        for name in &look_up {
            let Some(file) = files.get(name) else { continue };
            match look_up_in(&bucket, file, &on_disk).await {
                Ok(record) => objects.write(&record, listed).await?,
                // It may have gone since; the next round tells.
                Err(error) => debug!(location = bucket.location(name), %error, "A file in S3 could not be looked at."),
            }
            has_changed = true;
        }
        Ok(has_changed)
    }

    /// The bucket and the newest files in it, by their names.
    async fn bucket(&self, context: &Context) -> Option<(SnapshotBucket, BTreeMap<String, Object>)> {
        let s3 = self.config.s3.as_ref()?;
        let listed = async {
            let bucket = SnapshotBucket::open(s3, &self.paths).await?;
            let files = bucket.list().await?;
            Ok::<_, Error>((bucket, files))
        };
        match listed.await {
            Ok((bucket, files)) => {
                context.status.solved(BUCKET);
                let newest = files.into_iter().rev().filter(|file| file.bytes > 0).take(MOST_IN_BUCKET);
                Some((bucket, newest.map(|file| (file.name.clone(), file)).collect()))
            }
            Err(error) => {
                context.status.problem(BUCKET, error.to_string());
                None
            }
        }
    }

    /// The nodes of all servers that keep snapshots on their disks; `None` if not all are known.
    async fn nodes(&self) -> Option<BTreeSet<String>> {
        let mut nodes = match &self.member {
            Some(member) => member.nodes().await?,
            None => BTreeSet::new(),
        };
        nodes.insert(self.server.clone());
        Some(nodes)
    }

    /// Says on this server's Node since when the objects are right. Its Node may still have to come: then it says so with the next change.
    async fn note(&self, context: &Context) {
        let Some(node) = &self.own_node else { return };
        let keys = &RECONCILED[..if self.config.s3.is_some() { 2 } else { 1 }];
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let annotations = keys.iter().map(|key| (*key, now.clone())).collect();
        if let Err(error) = set_annotations(&context.client, node, &annotations).await {
            debug!(node, %error, "This server's Node does not say that its snapshots' objects are right.");
        }
    }
}

/// What a file in the bucket is: as the same file on this disk says, or as is noted beside it.
async fn look_up_in(bucket: &SnapshotBucket, file: &Object, on_disk: &[Listed]) -> Result<SnapshotRecord, Error> {
    let place = bucket.place(&file.name);
    let label = on_disk.iter().find(|listed| listed.name == file.name).and_then(|listed| listed.label.as_ref());
    if let Some(label) = label {
        return Ok(SnapshotRecord::copied(&file.name, label, file.bytes, place));
    }
    let noted = bucket.metadata(&file.name).await?;
    Ok(SnapshotRecord::noted(file, noted.node.unwrap_or_else(|| S3.to_owned()), noted.token_hash, place))
}

/// The objects in the API.
struct Objects<'a> {
    api: Api<EtcdSnapshotFile>,
    context: &'a Context,
}

impl<'a> Objects<'a> {
    fn new(context: &'a Context) -> Self {
        Self { api: Api::all_with(context.client.clone(), &resource()), context }
    }

    /// All of them; `None` while the API does not know the kind.
    async fn list(&self) -> kube::Result<Option<Vec<EtcdSnapshotFile>>> {
        let (mut params, mut objects) = (ListParams::default().limit(PAGE), Vec::new());
        loop {
            let page = match self.api.list(&params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                page => page?,
            };
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(Some(objects)),
            }
        }
    }

    /// Makes the object of `record`, or changes it. One that the API refuses holds up no other.
    async fn write(&self, record: &SnapshotRecord, before: &[EtcdSnapshotFile]) -> kube::Result<()> {
        let object = object::object(record);
        let name = object.name_any();
        let params = PatchParams::apply("k3s").force();
        let written = match self.api.patch(&name, &params, &Patch::Apply(&object)).await {
            Err(kube::Error::Api(status)) if status.is_invalid() || status.code == 400 => {
                self.context.status.problem(&name, status.message.clone());
                return Ok(());
            }
            written => written?,
        };
        self.context.status.solved(&name);
        // What is told again is no news.
        if !before.iter().any(|known| known.name_any() == name && is_ready(known) == is_ready(&written)) {
            let (kind, note) = record.event();
            self.tell(&written, kind, note).await;
        }
        Ok(())
    }

    async fn delete(&self, object: &EtcdSnapshotFile) -> kube::Result<()> {
        match self.api.delete(&object.name_any(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            deleted => drop(deleted?),
        }
        let note = format!("Snapshot {} deleted", object.spec.snapshot_name);
        self.tell(object, (EventType::Normal, "ETCDSnapshotDeleted"), note).await;
        Ok(())
    }

    /// One event more or less changes nothing.
    async fn tell(&self, object: &EtcdSnapshotFile, (type_, reason): (EventType, &str), note: String) {
        let event = Event { type_, reason: reason.into(), note: Some(note), action: reason.into(), secondary: None };
        if let Err(error) = self.context.events.publish(&event, &object.object_ref(&resource())).await {
            debug!(object = object.name_any(), %error, "An event could not be told.");
        }
    }
}
