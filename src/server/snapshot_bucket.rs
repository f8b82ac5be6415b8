//! The bucket that snapshots go to: whose settings may be in the cluster itself, and of which the newest of each name stay.

use std::path::{Path, PathBuf};

use k3s_components::Paths;
use k3s_config::{
    s3::{S3Config, S3Settings, S3Source},
    server::ServerConfig,
};
use k3s_datastore::{
    Error as DatastoreError,
    snapshot::{Listed, Snapshot, SnapshotFolder, is_scheduled, scheduled_at},
};
use k3s_s3::{Bucket, Metadata, Object, S3Error};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;
use tracing::info;

use crate::{
    Error,
    snapshot_files::{BucketPlace, SnapshotPlace},
};

/// Where k3s reads settings of a bucket.
const NAMESPACE: &str = "kube-system";
/// The key of the Secret that names a ConfigMap with authorities.
const AUTHORITIES: &str = "etcd-s3-endpoint-ca-name";
/// Bytes that stay free beside a snapshot.
const SPARE: u64 = 64 << 20;
/// No more snapshots than these are uploaded at a time, however long the bucket was away.
const MOST_MISSED: usize = 10;

/// A bucket of snapshots.
#[derive(Debug)]
pub struct SnapshotBucket {
    bucket: Bucket,
    /// As objects tell of it.
    place: BucketPlace,
    retention: usize,
}

impl SnapshotBucket {
    /// The bucket of a server; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Bucket`] if its settings cannot be used, [`Error::BucketSecret`] if they are in the cluster and cannot be read there.
    pub async fn of(config: &ServerConfig) -> Result<Option<Self>, Error> {
        match &config.snapshots.s3 {
            Some(s3) => Self::open(s3, &Paths::new(&config.data_dir, Paths::RUN)).await.map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn open(config: &S3Config, paths: &Paths) -> Result<Self, Error> {
        let settings = match &config.source {
            S3Source::Settings(settings) => settings.as_ref().clone(),
            S3Source::Secret(name) => {
                let unusable = |why| Error::BucketSecret { name: name.clone(), why };
                let client = k3s_agent::client(&paths.cred("supervisor.kubeconfig")).await;
                let client = client.map_err(|error| unusable(error.to_string()))?;
                of_secret(name, client).await.map_err(unusable)?
            }
        };
        let place = BucketPlace::of(&settings);
        Ok(Self { bucket: Bucket::new(&settings)?, place, retention: config.retention })
    }

    /// Where a snapshot of this name is in it.
    pub fn location(&self, name: &str) -> String {
        self.bucket.location(name)
    }

    /// The same, as objects tell of it.
    pub(crate) fn place(&self, name: &str) -> SnapshotPlace {
        self.place.clone().place(name)
    }

    /// Puts a snapshot into it; returns where it is.
    ///
    /// # Errors
    /// [`Error::Bucket`]
    pub async fn upload(&self, snapshot: &Snapshot) -> Result<String, Error> {
        let (name, label) = (snapshot.name(), &snapshot.label);
        let metadata = Metadata { node: Some(label.node.clone()), token_hash: Some(label.token_hash.clone()) };
        self.bucket.upload(&name, &snapshot.path, &metadata).await?;
        let location = self.bucket.location(&name);
        info!(location, "Saved a snapshot in S3.");
        Ok(location)
    }

    /// Puts a scheduled snapshot into it, and before it those of its name that missed it: taken since the newest one that is there.
    ///
    /// # Errors
    /// [`Error::Bucket`], [`Error::Snapshot`]; those before the one that could not be uploaded are there, and it comes next.
    pub(crate) async fn catch_up(
        &self,
        folder: SnapshotFolder,
        name: &str,
        node: &str,
        newest: &Snapshot,
    ) -> Result<(), Error> {
        let prefix = format!("{name}-{node}-");
        let there = self.list().await?;
        // A panic of it is in the log.
        let mut taken = spawn_blocking(move || folder.list()).await.map_err(|_| DatastoreError::Closed)??;
        taken.retain(|listed| listed.name != newest.name());
        for missed in missed(&taken, &there, &prefix, self.retention) {
            self.upload(&Snapshot::open(&missed.path)?).await?;
        }
        self.upload(newest).await.map(drop)
    }

    /// What is in it, oldest first.
    ///
    /// # Errors
    /// [`Error::Bucket`]
    pub async fn list(&self) -> Result<Vec<Object>, Error> {
        let mut objects = self.bucket.list().await?;
        objects.sort_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));
        Ok(objects)
    }

    /// What is noted of a snapshot.
    ///
    /// # Errors
    /// [`Error::Bucket`], also if it is not there.
    pub async fn metadata(&self, name: &str) -> Result<Metadata, Error> {
        Ok(self.bucket.metadata(name).await?)
    }

    /// Deletes a snapshot by its name; one that is not there is gone already.
    ///
    /// # Errors
    /// [`Error::Bucket`]
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        self.bucket.delete(name).await?;
        info!(location = self.bucket.location(name), "Deleted a snapshot in S3.");
        Ok(())
    }

    /// Deletes the oldest of the snapshots called `<name>-<node>-…` until as many are left as the bucket keeps; returns their names.
    ///
    /// # Errors
    /// [`Error::Bucket`]; those before the one that could not be deleted are gone.
    pub async fn prune(&self, name: &str, node: &str) -> Result<Vec<String>, Error> {
        let surplus = surplus(self.list().await?, &format!("{name}-{node}-"), self.retention);
        for name in &surplus {
            self.delete(name).await?;
        }
        Ok(surplus)
    }

    /// Puts a snapshot of it into a folder, where it has the same name; returns its path.
    ///
    /// # Errors
    /// [`Error::Bucket`], [`Error::File`]
    pub async fn download(&self, name: &str, folder: &Path) -> Result<PathBuf, Error> {
        let disk = statvfs(folder).map_err(|errno| Error::file(folder)(errno.into()))?;
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        let (part, path) = (folder.join(format!(".{name}.part")), folder.join(name));
        self.bucket.download(name, &part, free.saturating_sub(SPARE)).await?;
        std::fs::rename(&part, &path).map_err(Error::file(&path))?;
        info!(location = self.bucket.location(name), path = %path.display(), "Fetched a snapshot from S3.");
        Ok(path)
    }
}

/// Those of `taken`, oldest first, that are newer than all of their name that are there: no more than would stay beside one more.
fn missed<'a>(taken: &'a [Listed], there: &[Object], prefix: &str, keep: usize) -> Vec<&'a Listed> {
    let at = |name: &str| scheduled_at(name, prefix);
    let newest = there.iter().filter_map(|object| at(&object.name)).max();
    let is_missed = |listed: &&Listed| listed.label.is_some() && at(&listed.name).is_some_and(|at| Some(at) > newest);
    let mut missed: Vec<_> = taken.iter().filter(is_missed).collect();
    missed.sort_by_key(|listed| at(&listed.name));
    let stay = if keep == 0 { MOST_MISSED } else { keep.min(MOST_MISSED) } - 1;
    missed.split_off(missed.len().saturating_sub(stay))
}

/// The names of those that are too many, of which only a time follows the prefix.
fn surplus(objects: Vec<Object>, prefix: &str, keep: usize) -> Vec<String> {
    let mut names: Vec<_> =
        objects.into_iter().map(|object| object.name).filter(|name| is_scheduled(name, prefix)).collect();
    let many = if keep == 0 { 0 } else { names.len().saturating_sub(keep) };
    names.truncate(many);
    names
}

/// The settings in a Secret, and the authorities in the ConfigMap that it may name.
async fn of_secret(name: &str, client: Client) -> Result<S3Settings, String> {
    let secret = Api::<Secret>::namespaced(client.clone(), NAMESPACE).get(name).await;
    let data = secret.map_err(|error| error.to_string())?.data.unwrap_or_default();
    let get = |key: &str| data.get(key).and_then(|value| String::from_utf8(value.0.clone()).ok());
    let mut authorities = Vec::new();
    if let Some(map) = get(AUTHORITIES).map(|map| map.trim().to_owned()).filter(|map| !map.is_empty()) {
        let found = Api::<ConfigMap>::namespaced(client, NAMESPACE).get(&map).await;
        let found = found.map_err(|error| format!("{AUTHORITIES}: {error}"))?;
        authorities.extend(found.data.unwrap_or_default().into_values().map(String::into_bytes));
        authorities.extend(found.binary_data.unwrap_or_default().into_values().map(|value| value.0));
    }
    S3Settings::of_secret(get, authorities).map_err(|wrong| match wrong.name {
        Some(name) => format!("{name}: {}", wrong.problem),
        None => wrong.problem,
    })
}

impl From<S3Error> for Error {
    fn from(error: S3Error) -> Self {
        Self::Bucket(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k3s_datastore::snapshot::{Label, SnapshotStore};

    use super::*;

    fn objects(names: &[&str]) -> Vec<Object> {
        names.iter().map(|name| Object { name: (*name).to_owned(), bytes: 1, modified: None }).collect()
    }

    #[test]
    fn those_that_missed_the_bucket_come_oldest_first_and_no_more_than_stay() {
        let label = Label {
            node: "one".into(),
            created: 1,
            revision: 1,
            database_bytes: 1,
            compressed: false,
            store: SnapshotStore::Etcd,
            format: 1,
            version: "v1.36.3+k3s1".into(),
            token_hash: "1ec1c26b50d5".into(),
            metadata: BTreeMap::new(),
        };
        let listed = |name: String, label| Listed { path: Path::new("/s").join(&name), name, bytes: 1, label };
        let mut taken: Vec<_> = (1..=30).rev().map(|at| listed(format!("s-one-{at}"), Some(label.clone()))).collect();
        taken.push(listed("s-one-31".into(), None));
        taken.push(listed("s-one-extra".into(), Some(label)));
        let missed = |there: &[&str], keep| {
            let missed = missed(&taken, &objects(there), "s-one-", keep);
            missed.into_iter().map(|listed| listed.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(missed(&["s-one-27", "s-two-99"], 5), ["s-one-28", "s-one-29", "s-one-30"]);
        assert_eq!(missed(&["s-one-9"], 3), ["s-one-29", "s-one-30"], "an older one would be pruned at once");
        assert_eq!(missed(&["s-one-30"], 5), [""; 0]);
        assert_eq!(missed(&[], 1), [""; 0]);
        assert_eq!(missed(&[], 0).len(), MOST_MISSED - 1);
    }

    #[test]
    fn the_newest_of_one_name_stay() {
        let names = ["s-one-1", "s-one-2", "s-two-1", "s-one-extra", "s-one-3.zst", "notes"];
        assert_eq!(surplus(objects(&names), "s-one-", 2), ["s-one-1"]);
        assert_eq!(surplus(objects(&names), "s-one-", 0), [""; 0]);
        assert_eq!(surplus(objects(&names), "s-one-", 9), [""; 0]);
    }
}
