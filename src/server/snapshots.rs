//! Snapshots of a server's datastore: on request, on schedule, and restoring one.
//!
//! A running server holds its database, so `k3s snapshot save` asks it, over a socket that only root may use: one JSON
//! document each way. What the folder holds is for everyone to list and prune; the server is told of it afterwards.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Zoned;
use k3s_components::Paths;
use k3s_config::{
    datastore::OnDisk,
    s3::S3Config,
    secret::Secret,
    server::ServerConfig,
    snapshots::{Schedule, SnapshotConfig},
};
use k3s_datastore::{
    Datastore, Error as DatastoreError, Options,
    snapshot::{Restored, Save, Snapshot, SnapshotError, SnapshotFolder},
};
use k3s_identity::{Password, TokenFiles};
pub use k3s_s3::Object;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    AdminClient, BootstrapError, Error,
    bootstrap_data::{self, Found, Precedence},
    etcd::Membership,
    host::{self, Host},
    snapshot_bucket::SnapshotBucket,
    snapshot_files::{SnapshotNotices, SnapshotRecord},
};

/// A request is sent within this, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any request or answer has.
const LARGEST: u64 = 64 << 10;
/// A clock that was set is noticed after this: the schedule is by the clock, and waiting is not.
const LONGEST_WAIT: Duration = Duration::from_secs(900);
/// The ConfigMap in which users say what is to be noted beside snapshots, as in k3s.
const NAMESPACE: &str = "kube-system";
const EXTRA_METADATA: &str = "k3s-etcd-snapshot-extra-metadata";
/// A snapshot does not wait longer for it.
const METADATA_WITHIN: Duration = Duration::from_secs(5);

/// What a user asks a running server for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Save {
        name: String,
        folder: PathBuf,
        compress: bool,
    },
    /// Nothing, but to know that snapshots have come or gone, and what could not be uploaded. It is not answered.
    Changed(Option<Box<SnapshotRecord>>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Saved(PathBuf),
    Refused(String),
}

/// What they are taken of.
pub(crate) enum SnapshotSource<'a> {
    /// The database of this process.
    Sqlite(&'a Datastore),
    /// This server's member of etcd.
    Etcd(&'a Membership),
    /// Whoever has the cluster's state takes them there.
    Elsewhere,
}

/// The snapshots of a running server.
pub(crate) struct Snapshots<'a> {
    pub(crate) source: SnapshotSource<'a>,
    pub(crate) config: &'a SnapshotConfig,
    /// `--data-dir`
    pub(crate) data_dir: &'a Path,
    pub(crate) node: &'a str,
    pub(crate) token: watch::Receiver<Password>,
    pub(crate) version: &'a str,
    /// What becomes of them is told here.
    pub(crate) notices: Arc<SnapshotNotices>,
    /// Where it is read what is to be noted beside them.
    pub(crate) api: Option<AdminClient>,
}

impl Snapshots<'_> {
    /// Answers requests, one after the other, until `shutdown`.
    pub(crate) async fn serve(&self, listener: UnixListener, shutdown: CancellationToken) {
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            let answered = match accepted {
                Ok((stream, _)) => self.answer(stream).await,
                Err(error) => Err(error),
            };
            if let Err(error) = answered {
                warn!(%error, "A request for a snapshot could not be answered.");
                shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await;
            }
        }
    }

    /// Takes snapshots when the schedule says so, and prunes, until `shutdown`.
    pub(crate) async fn follow_schedule(&self, shutdown: CancellationToken) {
        let Some(schedule) = &self.config.schedule else { return };
        while shutdown.run_until_cancelled(due(schedule)).await.is_some() {
            let snapshot = match self.save_and_prune().await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    error!(%error, "A scheduled snapshot could not be taken.");
                    continue;
                }
            };
            if let Some(s3) = &self.config.s3 {
                // A stop does not wait for a bucket.
                shutdown.run_until_cancelled(self.keep_in_bucket(s3, &snapshot)).await;
            }
        }
    }

    async fn save_and_prune(&self) -> Result<Snapshot, Error> {
        let SnapshotConfig { folder, name, compress, retention, .. } = self.config;
        let snapshot = self.save(name, folder, *compress).await?;
        let (folder, name, node, keep) = (SnapshotFolder::new(folder), name.clone(), self.node.to_owned(), *retention);
        let pruned = spawn_blocking(move || folder.prune(&name, &node, keep)).await;
        // A panic of it is in the log.
        if let Err(error) = pruned.map_err(|_| DatastoreError::Closed)? {
            error!(%error, "Old snapshots could not be deleted.");
        }
        self.notices.tell(None);
        Ok(snapshot)
    }

    /// Puts a scheduled snapshot into the bucket. What cannot be put there is in the folder still, and tried again with the next one.
    async fn keep_in_bucket(&self, s3: &S3Config, snapshot: &Snapshot) {
        let SnapshotConfig { folder, name, .. } = self.config;
        let uploaded = match SnapshotBucket::open(s3, &Paths::new(self.data_dir, Paths::RUN)).await {
            Ok(bucket) => {
                let uploaded = bucket.catch_up(SnapshotFolder::new(folder), name, self.node, snapshot).await;
                // Also where that failed: perhaps because the bucket is full.
                if let Err(error) = bucket.prune(name, self.node).await {
                    error!(%error, "Old snapshots in S3 could not be deleted.");
                }
                uploaded
            }
            Err(error) => Err(error),
        };
        let failure = uploaded.err().map(|error| {
            error!(%error, path = %snapshot.path.display(), "A scheduled snapshot is on the disk alone: S3 gets it with the next one.");
            SnapshotRecord::not_uploaded(snapshot, s3, error.to_string())
        });
        self.notices.tell(failure);
    }

    /// Saves one and tells of it, whatever came of it.
    async fn save(&self, name: &str, folder: &Path, compress: bool) -> Result<Snapshot, Error> {
        let saved = self.take(name, folder, compress).await;
        let failure = saved.as_ref().err().map(|error| SnapshotRecord::not_taken(name, self.node, error.to_string()));
        self.notices.tell(failure);
        saved
    }

    async fn take(&self, name: &str, folder: &Path, compress: bool) -> Result<Snapshot, Error> {
        make_default_folder(self.data_dir, folder)?;
        let save = Save {
            folder: folder.to_owned(),
            name: name.to_owned(),
            node: self.node.to_owned(),
            compress,
            version: self.version.to_owned(),
            token_hash: bootstrap_data::token_hash(self.token.borrow().expose()),
            metadata: self.metadata().await,
        };
        let snapshot = match self.source {
            SnapshotSource::Sqlite(datastore) => datastore.save_snapshot(save).await?,
            SnapshotSource::Etcd(member) => member.save_snapshot(save).await?,
            SnapshotSource::Elsewhere => return Err(Error::KeptElsewhere),
        };
        info!(path = %snapshot.path.display(), revision = snapshot.label.revision, bytes = snapshot.bytes, "Saved a snapshot.");
        Ok(snapshot)
    }

    /// What users want to be noted beside snapshots; nothing if the API does not tell.
    async fn metadata(&self) -> BTreeMap<String, String> {
        let Some(Ok(client)) = self.api.as_ref().map(AdminClient::client) else { return BTreeMap::new() };
        let api = Api::<ConfigMap>::namespaced(client, NAMESPACE);
        match timeout(METADATA_WITHIN, api.get_opt(EXTRA_METADATA)).await {
            Ok(Ok(map)) => map.and_then(|map| map.data).unwrap_or_default(),
            Ok(Err(error)) => {
                warn!(%error, "The ConfigMap {EXTRA_METADATA} cannot be read: nothing of it is noted beside the snapshot.");
                BTreeMap::new()
            }
            Err(_) => {
                warn!("The API does not answer: nothing of {EXTRA_METADATA} is noted beside the snapshot.");
                BTreeMap::new()
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut text = Vec::new();
        timeout(PATIENCE, (&mut stream).take(LARGEST).read_to_end(&mut text)).await??;
        let (name, folder, compress) = match serde_json::from_slice(&text)? {
            Request::Save { name, folder, compress } => (name, folder, compress),
            Request::Changed(failure) => {
                self.notices.tell(failure.map(|failure| *failure));
                return Ok(());
            }
        };
        let answer = match self.save(&name, &folder, compress).await {
            Ok(snapshot) => Answer::Saved(snapshot.path),
            Err(error) => Answer::Refused(error.to_string()),
        };
        timeout(PATIENCE, stream.write_all(&serde_json::to_vec(&answer)?)).await?
    }
}

/// Saves a snapshot called `<name>-<node>-<time>`: by the server that runs on the data directory, or else here.
///
/// # Errors
/// [`Error::Snapshot`], [`Error::Datastore`], or [`Error::NoServer`] if the database is in use and nobody answers.
pub async fn save(config: &ServerConfig, name: &str, version: &str) -> Result<Snapshot, Error> {
    let paths = Paths::new(&config.data_dir, Paths::RUN);
    if let Some(OnDisk::Member(_)) = config.datastore.on_disk() {
        return match ask(&paths.snapshot_socket(), config, name).await {
            Err(Error::NoServer { socket, source }) => Err(Error::NotRunning { socket, source }),
            saved => saved,
        };
    }
    let path = database(config)?;
    if !path.exists() {
        return Err(Error::NoDatastore { path: path.to_owned() });
    }
    let datastore = match Datastore::open(Options::new(path)).await {
        Ok(datastore) => datastore,
        Err(DatastoreError::InUse { .. }) => return ask(&paths.snapshot_socket(), config, name).await,
        Err(error) => return Err(error.into()),
    };
    let saved = async {
        let token = known_token(config, &paths)?.ok_or(BootstrapError::NoToken { sealed_by: Vec::new() })?;
        let node = Host::name(config)?;
        let SnapshotConfig { folder, compress, .. } = &config.snapshots;
        let (_, token) = watch::channel(token);
        Snapshots {
            source: SnapshotSource::Sqlite(&datastore),
            config: &config.snapshots,
            data_dir: &config.data_dir,
            node: &node,
            token,
            version,
            notices: Arc::default(),
            api: None,
        }
        .save(name, folder, *compress)
        .await
    };
    let saved = saved.await;
    let closed = datastore.close().await;
    saved.and_then(|snapshot| Ok(closed.map(|()| snapshot)?))
}

async fn ask(socket: &Path, config: &ServerConfig, name: &str) -> Result<Snapshot, Error> {
    let SnapshotConfig { folder, compress, .. } = &config.snapshots;
    let request = Request::Save { name: name.to_owned(), folder: folder.clone(), compress: *compress };
    let ask = async {
        let stream = send(socket, &request).await?;
        let mut text = Vec::new();
        stream.take(LARGEST).read_to_end(&mut text).await?;
        Ok(serde_json::from_slice(&text)?)
    };
    let answer = ask.await.map_err(|source| Error::NoServer { socket: socket.to_owned(), source })?;
    match answer {
        Answer::Saved(path) => Ok(Snapshot::open(&path)?),
        Answer::Refused(why) => Err(Error::Refused(why)),
    }
}

async fn send(socket: &Path, request: &Request) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&serde_json::to_vec(request)?).await?;
    stream.shutdown().await?;
    Ok(stream)
}

/// Tells the server that runs on the data directory, if one does, that snapshots have come or gone. If none hears it, the next start sees.
async fn tell(config: &ServerConfig, failure: Option<SnapshotRecord>) {
    let socket = Paths::new(&config.data_dir, Paths::RUN).snapshot_socket();
    let request = Request::Changed(failure.map(Box::new));
    if let Ok(Err(error)) = timeout(PATIENCE, send(&socket, &request)).await {
        debug!(%error, socket = %socket.display(), "No server was told of the snapshots.");
    }
}

/// Puts a snapshot in the datastore's place, and the cluster's authorities in it on the disk. The server has to be stopped.
///
/// # Errors
/// [`Error::Daemon`] while a server runs, [`Error::Bootstrap`] if the token does not open the snapshot, [`Error::Snapshot`] if
/// it is damaged or of a newer version; nothing was changed then.
pub async fn restore(config: &ServerConfig, file: &Path, version: &str) -> Result<Restored, Error> {
    let paths = Paths::new(&config.data_dir, Paths::RUN);
    host::check_room(&paths)?;
    let _lock = k3s_daemon::lock(k3s_config::Role::Server, &paths)?;
    let snapshot = Snapshot::open(file)?;
    if minor(&snapshot.label.version) > minor(version) {
        return Err(SnapshotError::Newer { path: file.to_owned(), version: snapshot.label.version }.into());
    }
    let database = database(config)?.to_owned();
    // A panic of it is in the log.
    let staged = spawn_blocking(move || snapshot.stage(&database)).await.map_err(|_| DatastoreError::Closed)??;
    let token = known_token(config, &paths)?;
    let found = bootstrap_data::find(&staged.list(bootstrap_data::PREFIX)?, token.as_ref(), None)?;
    let restored = staged.put_in_place()?;
    let server = paths.server();
    take_authorities(found.as_ref(), &server)?;
    Ok(restored)
}

/// Puts the cluster's authorities on the disk, as a store that was restored has them.
pub(crate) fn take_authorities(found: Option<&Found>, server: &Path) -> Result<(), Error> {
    let Some(found) = found else {
        warn!("The snapshot holds no certificate authorities: those on the disk stay.");
        return Ok(());
    };
    if bootstrap_data::differs(&found.data, server)? {
        if let Some(kept) = bootstrap_data::set_aside(server)? {
            info!(path = %kept.display(), "The certificates of before are kept.");
        }
        bootstrap_data::reconcile(&found.data, server, Precedence::Datastore)?;
    }
    Ok(())
}

/// Puts a snapshot into the bucket of a server, and says where it is; nothing where there is no bucket.
///
/// # Errors
/// [`Error::Bucket`], [`Error::BucketSecret`]: the snapshot is on the disk alone.
pub async fn upload(config: &ServerConfig, snapshot: &Snapshot) -> Result<Option<String>, Error> {
    let Some(s3) = &config.snapshots.s3 else { return Ok(None) };
    let uploaded = async {
        let bucket = SnapshotBucket::open(s3, &Paths::new(&config.data_dir, Paths::RUN)).await?;
        bucket.upload(snapshot).await
    };
    let uploaded = uploaded.await;
    let failure = uploaded.as_ref().err().map(|error| SnapshotRecord::not_uploaded(snapshot, s3, error.to_string()));
    tell(config, failure).await;
    uploaded.map(Some)
}

/// Fetches a snapshot from the bucket of a server into its folder; returns its path.
///
/// # Errors
/// [`Error::Bucket`], [`Error::BucketSecret`], [`Error::File`]
pub async fn fetch(config: &ServerConfig, name: &str) -> Result<PathBuf, Error> {
    let bucket = SnapshotBucket::of(config).await?.ok_or(Error::NoBucket)?;
    make_default_folder(&config.data_dir, &config.snapshots.folder)?;
    bucket.download(name, &config.snapshots.folder).await
}

/// The snapshots of a server.
pub fn folder(config: &ServerConfig) -> SnapshotFolder {
    SnapshotFolder::new(&config.snapshots.folder)
}

/// Prunes the snapshots called `name`, those in the bucket of the server, too; returns the names of those that are gone.
///
/// # Errors
/// [`Error::Snapshot`], [`Error::Bucket`]; [`Error::Node`] if the node's name cannot be told.
pub async fn prune(config: &ServerConfig, name: &str) -> Result<Vec<String>, Error> {
    let pruned = prune_files(config, name).await;
    tell(config, None).await;
    pruned
}

async fn prune_files(config: &ServerConfig, name: &str) -> Result<Vec<String>, Error> {
    let node = Host::name(config)?;
    let mut pruned = folder(config).prune(name, &node, config.snapshots.retention)?;
    if let Some(bucket) = SnapshotBucket::of(config).await? {
        pruned.extend(bucket.prune(name, &node).await?.iter().map(|name| bucket.location(name)));
    }
    Ok(pruned)
}

/// Deletes snapshots by their names, from the folder of the server and from its bucket.
///
/// # Errors
/// The first one that could not be deleted, or is nowhere; those before it are gone.
pub async fn delete(config: &ServerConfig, names: &[String]) -> Result<(), Error> {
    let deleted = delete_files(config, names).await;
    tell(config, None).await;
    deleted
}

async fn delete_files(config: &ServerConfig, names: &[String]) -> Result<(), Error> {
    let Some(bucket) = SnapshotBucket::of(config).await? else { return Ok(folder(config).delete(names)?) };
    for name in names {
        match folder(config).delete(std::slice::from_ref(name)) {
            // Then it has to be in the bucket.
            Err(SnapshotError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                bucket.metadata(name).await?;
            }
            deleted => deleted?,
        }
        bucket.delete(name).await?;
    }
    Ok(())
}

/// The file that snapshots are of.
fn database(config: &ServerConfig) -> Result<&Path, Error> {
    match config.datastore.on_disk() {
        Some(OnDisk::Database(path)) => Ok(path),
        Some(OnDisk::Member(_)) | None => Err(Error::KeptElsewhere),
    }
}

/// The token as given, or as the server was set up with.
pub(crate) fn known_token(config: &ServerConfig, paths: &Paths) -> Result<Option<Password>, Error> {
    match config.token.as_ref().map(Secret::expose) {
        Some(given) => Ok(Some(Password::new(given))),
        None => Ok(TokenFiles::password(&paths.server())?),
    }
}

/// Any other folder may be the mount point of a disk that is missing, and is not made.
fn make_default_folder(data_dir: &Path, folder: &Path) -> Result<(), Error> {
    if folder == SnapshotConfig::default_folder(data_dir) {
        k3s_files::create_directory(folder, 0o700)?;
    }
    Ok(())
}

/// Waits for the next time that the schedule names; for ever if there is none.
async fn due(schedule: &Schedule) {
    let Some(next) = schedule.next(&Zoned::now()) else { return std::future::pending().await };
    loop {
        let left = Duration::try_from(next.timestamp().duration_since(Zoned::now().timestamp())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_WAIT)).await;
    }
}

/// The Kubernetes minor of `v1.36.3+k3s1`: a server reads what servers up to its own minor have written.
pub fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
