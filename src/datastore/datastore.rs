//! Opening, serving and closing a store.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::future::join_all;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::client::Client;
use crate::error::Error;
use crate::etcd;
use crate::listen::{Access, Endpoint, Listener};
use crate::log::sqlite::SqliteLog;
use crate::metrics::{self, StoreCollector};
use crate::revision::Revision;
use crate::snapshot::{self, Save, Snapshot, SnapshotError};
use crate::store::Store;
use crate::writer::Writer;

/// Commands that may wait for the writer; more wait at their clients.
const QUEUE: usize = 1024;
/// Connections that read.
const READERS: usize = 2;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file; k3s' is `server/db/state.db`. It is created, with its directory, if it is not there.
    pub path: PathBuf,
    /// Bytes to keep free on the file system: below that only deletes are accepted. It has to hold what moves on then:
    /// the write-ahead log, its copy into the table, and the deletes; 16 MiB is the least that does.
    pub reserve: u64,
    /// Bytes of values to keep in memory: of those written or read lately, and what they replaced.
    pub value_cache: usize,
    /// Bytes of recent events to keep in memory: a watcher that is further behind reads the file.
    pub ring: usize,
    /// How often a watcher that asked for progress notifications gets one, if there is progress.
    pub progress_interval: Duration,
    /// Name of the registered SQLite VFS to use instead of the default one: tests see by it what a failing disk does.
    pub vfs: Option<String>,
}

impl Options {
    /// The defaults for a file: 32 MiB reserve, 8 MiB of values, 1 MiB of events, progress every 5 s as k3s has it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            reserve: 32 << 20,
            value_cache: 8 << 20,
            ring: 1 << 20,
            progress_interval: Duration::from_secs(5),
            vfs: None,
        }
    }
}

/// A moment's state of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The newest revision.
    pub revision: Revision,
    /// Reads before this revision are refused.
    pub compacted: Revision,
    /// Whether writes are refused because the file system is nearly full.
    pub no_space: bool,
}

/// An open store.
///
/// ```text
/// open ──► serving (any number of listeners) ──► close: all committed data in one file, checked for kine
///               └── the log fails ──► stopped: reads and writes are refused; see `stopped`
/// ```
/// Dropping it closes it too, at some later time and without telling how that went.
pub struct Datastore {
    store: Arc<Store>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held while a snapshot is saved.
    saving: Arc<Mutex<()>>,
    _stop: DropGuard,
}

impl Datastore {
    /// Opens or creates the database and starts the writer.
    ///
    /// # Errors
    /// Any [`Error`] about the file; nothing in it was changed then.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let (path, vfs) = (options.path.clone(), options.vfs.clone());
        let opening = spawn_blocking(move || {
            let (log, recovered) = SqliteLog::open_with_vfs(&path, vfs.as_deref())?;
            let readers = (0..READERS).map(|_| log.reader()).collect::<Result<Vec<_>, _>>()?;
            Ok((log, recovered, readers))
        });
        let (log, recovered, readers) = opening.await.map_err(|_| Error::Closed)??;
        let (revision, compacted) = (recovered.head, recovered.compacted);
        let (commands, queue) = mpsc::channel(QUEUE);
        let store = Arc::new(Store::new(&options, recovered, readers, commands));
        let writer = Writer::new(Arc::clone(&store), log, queue);
        let thread = thread::Builder::new()
            .name("datastore".to_owned())
            .spawn({
                let store = Arc::clone(&store);
                move || {
                    if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                        store.stop(Some(Error::Crashed(store.path.clone())));
                    }
                }
            })
            .map_err(Error::file("start a thread for", &options.path))?;

        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let expiring = (Arc::clone(&store), stopping.clone());
        tasks.spawn(async move {
            let (store, stopping) = expiring;
            stopping.run_until_cancelled(store.expire_leases()).await;
        });
        info!(path = %options.path.display(), %revision, %compacted, "Opened the datastore.");
        let saving = Arc::default();
        Ok(Self {
            store,
            tasks,
            writer: Mutex::new(Some(thread)),
            saving,
            _stop: stopping.clone().drop_guard(),
            stopping,
        })
    }

    /// Serves etcd's gRPC API until `shutdown`, or until the store is closed. Watches end then; requests under way
    /// are answered. May be called for several listeners.
    ///
    /// # Errors
    /// [`Error::File`] when the listener fails.
    pub async fn serve(&self, listener: impl Listener, shutdown: CancellationToken) -> Result<(), Error> {
        let shutdown_or_close = shutdown.child_token();
        let serving = etcd::serve(Arc::clone(&self.store), listener, shutdown_or_close.clone());
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => return result,
            () = self.stopping.cancelled() => shutdown_or_close.cancel(),
        }
        serving.await
    }

    /// Adds this store's metrics to a registry, under names that begin with `k3s_datastore_`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let collector = StoreCollector(Arc::downgrade(&self.store));
        registry.sub_registry_with_prefix("k3s_datastore").register_collector(Box::new(collector));
    }

    /// Reads and writes without gRPC, for what this process itself keeps in the store.
    pub fn client(&self) -> Client {
        Client::new(Arc::clone(&self.store))
    }

    /// Saves the store as it is at this moment; it serves on meanwhile. One snapshot at a time; closing the store ends it.
    ///
    /// # Errors
    /// Any [`SnapshotError`]; nothing of the snapshot stays then.
    pub async fn save_snapshot(&self, save: Save) -> Result<Snapshot, SnapshotError> {
        let saving = Arc::clone(&self.saving).try_lock_owned().map_err(|_| SnapshotError::UnderWay)?;
        let (path, stopping) = (self.store.path.clone(), self.stopping.clone());
        let saved = self.tasks.spawn_blocking(move || {
            let saved = snapshot::save(&path, &save, &stopping);
            drop(saving);
            saved
        });
        // A panic of the copy is in the log.
        saved.await.map_err(|_| Error::Closed)?
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The file that is served.
    pub fn path(&self) -> &Path {
        &self.store.path
    }

    /// The state at this moment.
    pub fn status(&self) -> Status {
        let state = self.store.state();
        Status { revision: state.published, compacted: state.compacted, no_space: self.store.has_no_space() }
    }

    /// Waits until the store has stopped by itself, and tells why.
    pub async fn stopped(&self) -> Error {
        self.store.stopped().await
    }

    /// Stops cleanly: everything is moved into the one file, which is checked for what kine would refuse, and closed.
    /// End the listeners first, or their last requests are refused.
    ///
    /// # Errors
    /// Why the store had stopped already, or what the check found.
    pub async fn close(&self) -> Result<(), Error> {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.store.close_readers().await;
        let result = self.store.close_writer().await;
        if let Some(thread) = self.writer.lock().await.take() {
            // A panic of the writer is told by `close_writer`.
            let _ = spawn_blocking(|| thread.join()).await;
        }
        result?;
        info!(path = %self.store.path.display(), "Closed the datastore.");
        Ok(())
    }
}

/// Where a store is served, and for whom.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// The addresses of etcd's API.
    pub listen: Vec<Endpoint>,
    /// Whom the addresses on TCP serve.
    pub access: Access,
    /// Where metrics are served, over plain HTTP at `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// Opens a store, serves it until `shutdown`, and closes it: all of `k3s datastore serve`. Addresses are bound first: with
/// a wrong one nothing is opened.
///
/// # Errors
/// Which address cannot be had, why the store could not be opened, why it stopped by itself, or what closing it found.
pub async fn serve(options: Options, serving: &Serving, shutdown: CancellationToken) -> Result<(), Error> {
    let mut endpoints = Vec::new();
    for endpoint in &serving.listen {
        endpoints.push(endpoint.bind(&serving.access).await?);
    }
    let metrics = match &serving.metrics {
        Some(address) => Some(Endpoint::Http(*address).bind_tcp(address).await?),
        None => None,
    };
    let datastore = Datastore::open(options).await?;
    // Whatever ends first ends the others.
    let stop = shutdown.child_token();
    let served = endpoints.into_iter().map(async |endpoint| {
        let served = endpoint.serve(&datastore, stop.clone()).await;
        stop.cancel();
        served
    });
    let failed = async {
        let failure = stop.run_until_cancelled(datastore.stopped()).await;
        stop.cancel();
        failure.map_or(Ok(()), Err)
    };
    let shown = async {
        if let Some(listener) = metrics {
            let mut registry = Registry::default();
            datastore.register_metrics(&mut registry);
            metrics::serve(listener, registry, stop.clone()).await;
        }
    };
    let (failed, served, ()) = tokio::join!(failed, join_all(served), shown);
    let served: Result<(), Error> = served.into_iter().collect();
    let closed = datastore.close().await;
    failed.and(served).and(closed)
}

impl Drop for Datastore {
    fn drop(&mut self) {
        // The writer holds the store, and with it the way to itself: it has to be told.
        self.store.abandon();
    }
}

impl std::fmt::Debug for Datastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datastore").field("path", &self.store.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::error::RequestError;
    use crate::key::{Key, KeyRange};
    use crate::revision::LeaseId;
    use crate::txn::{Delete, Op, Put, Txn};

    fn put(key: &'static str) -> Txn {
        let (value, lease) = (Some(Bytes::from_static(b"v")), Some(LeaseId::NONE));
        Txn::of(Op::Put(Put { key: Key::from_static(key.as_bytes()), value, lease, return_previous: false }))
    }

    fn delete(key: &'static str) -> Txn {
        let keys = KeyRange::One(Key::from_static(key.as_bytes()));
        Txn::of(Op::Delete(Delete { keys, return_previous: false }))
    }

    #[tokio::test]
    async fn a_nearly_full_disk_refuses_writes_but_not_deletes() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new(directory.path().join("state.db"));
        let roomy = Datastore::open(options.clone()).await.unwrap();
        roomy.store().txn(put("a")).await.unwrap();
        roomy.close().await.unwrap();

        let tight = Datastore::open(Options { reserve: u64::MAX, ..options }).await.unwrap();
        assert_eq!(tight.store().txn(put("b")).await.unwrap_err(), RequestError::NoSpace);
        assert!(tight.status().no_space);
        assert_eq!(tight.store().txn(delete("a")).await.unwrap().revision, Revision(3));
        tight.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_foreign_writer_stops_the_store_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let datastore = Datastore::open(Options::new(&path)).await.unwrap();
        datastore.store().txn(put("a")).await.unwrap();
        let foreign = rusqlite::Connection::open(&path).unwrap();
        foreign.execute("UPDATE kine SET old_value = 'x'", []).unwrap();
        let refused = datastore.store().txn(put("a")).await.unwrap_err();
        assert!(refused.to_string().contains("changed by another program"), "{refused}");
        assert!(matches!(datastore.stopped().await, Error::ForeignWriter(_)));
        assert!(matches!(datastore.store().txn(put("a")).await, Err(RequestError::Stopped(_))));
        assert!(matches!(datastore.close().await, Err(Error::ForeignWriter(_))));
    }

    #[tokio::test]
    async fn a_locked_database_refuses_one_write_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let datastore = Datastore::open(Options::new(&path)).await.unwrap();
        let foreign = rusqlite::Connection::open(&path).unwrap();
        foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(matches!(datastore.store().txn(put("a")).await, Err(RequestError::Storage(_))));
        foreign.execute_batch("ROLLBACK").unwrap();
        assert_eq!(datastore.store().txn(put("a")).await.unwrap().revision, Revision(2));
        datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn serving_ends_with_the_shutdown_or_with_the_failure() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new(directory.path().join("state.db"));
        let socket = directory.path().join("s.sock");
        let serving = Serving { listen: vec![Endpoint::Unix(socket.clone())], ..Serving::default() };
        let shutdown = CancellationToken::new();
        let done = tokio::join!(serve(options.clone(), &serving, shutdown.clone()), async { shutdown.cancel() }).0;
        done.unwrap();
        std::fs::write(
            &options.path,
            "no database at all, but as long as a header of one is: a hundred bytes and more, see?",
        )
        .unwrap();
        let failed = serve(options, &serving, CancellationToken::new()).await;
        assert!(matches!(failed, Err(Error::NotADatabase(_))), "{failed:?}");
    }

    #[tokio::test]
    async fn a_dropped_store_lets_go_of_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        drop(Datastore::open(Options::new(&path)).await.unwrap());
        let lock = std::fs::File::open(path.with_file_name("state.db-lock")).unwrap();
        spawn_blocking(move || lock.lock()).await.unwrap().unwrap();
        Datastore::open(Options::new(&path)).await.unwrap().close().await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_store_answers_and_closes_again_as_closed() {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        datastore.close().await.unwrap();
        assert!(matches!(datastore.store().txn(put("a")).await, Err(RequestError::Stopped(_))));
        assert!(matches!(datastore.close().await, Err(Error::Closed)));
        assert!(matches!(datastore.stopped().await, Error::Closed));
    }
}
