//! The store as everyone but the writer sees it: reads, watches, leases, and the way to the writer.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::ValueCache;
use crate::datastore::Options;
use crate::error::{Error, RequestError};
use crate::index::Index;
use crate::key::Key;
use crate::lease::{self, LeaseState, Lessor};
use crate::log::sqlite::{Reader, Recovered, Size};
use crate::metrics::Metrics;
use crate::range::{Page, Range};
use crate::readers::Readers;
use crate::revision::{LeaseId, Revision};
use crate::space::Space;
use crate::txn::{Txn, TxnReply};
use crate::watch::Hub;
use crate::writer::Command;

/// Rows that are read without going to another thread, and kept in the cache then. Whoever reads more of them keeps them
/// himself, as kube-apiserver does with its lists.
const FEW_ROWS: usize = 4;

/// What is published. Rows above `published` may be in the index already: the writer is about to commit them, and no
/// read looks that far.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) published: Revision,
    pub(crate) compacted: Revision,
    /// How compaction stands. A read that misses a row looks here whether it came in between.
    pub(crate) removals: Removals,
}

/// Steps of compaction that have removed rows, and whether one is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removals {
    pub(crate) done: u64,
    pub(crate) under_way: bool,
}

impl Removals {
    /// Whether a row that was there at `before` may be missing now.
    pub(crate) fn explain(self, before: Self) -> bool {
        self.under_way || self != before
    }
}

/// How long the writer waits for watchers before it gives up on those that took nothing meanwhile, and how often for one
/// batch. A tenth of a second in all, so that writes are late and never lost to their clients' time-outs.
const PATIENCE: Duration = Duration::from_millis(20);
const WAITS: u32 = 5;

/// See the module's text. Locks are taken in the order of the fields, and never held over an await.
pub(crate) struct Store {
    state: RwLock<State>,
    hub: Mutex<Hub>,
    lessor: Mutex<Lessor>,
    cache: Mutex<ValueCache>,
    lessor_changed: Notify,
    readers: Readers,
    commands: mpsc::Sender<Command>,
    failure: OnceLock<Error>,
    stopped: CancellationToken,
    pub(crate) space: Space,
    pub(crate) metrics: Metrics,
    pub(crate) path: PathBuf,
    progress_interval: Duration,
    opened: Instant,
}

impl Store {
    pub(crate) fn new(
        options: &Options,
        recovered: Recovered,
        readers: Vec<Reader>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let Recovered { index, head, compacted, leases } = recovered;
        let now = Instant::now();
        let mut lessor = Lessor::default();
        for stored in leases {
            let remaining = stored.remaining.unwrap_or(stored.ttl);
            lessor.insert(stored.id, stored.ttl, lease::deadline(now, remaining), stored.remaining.is_none());
        }
        for (key, entry) in index.live(head) {
            lessor.attach(key, LeaseId::NONE, entry.lease);
        }
        Self {
            state: RwLock::new(State { index, published: head, compacted, removals: Removals::default() }),
            hub: Mutex::new(Hub::new(head, options.ring)),
            lessor: Mutex::new(lessor),
            cache: Mutex::new(ValueCache::new(options.value_cache)),
            lessor_changed: Notify::new(),
            readers: Readers::new(readers),
            commands,
            failure: OnceLock::new(),
            stopped: CancellationToken::new(),
            space: Space::new(&options.path, options.reserve),
            metrics: Metrics::default(),
            path: options.path.clone(),
            progress_interval: options.progress_interval,
            opened: now,
        }
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("the writer does not panic while it changes the state")
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("the writer does not panic while it changes the state")
    }

    pub(crate) fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().expect("no method of the hub panics")
    }

    /// Blocks the writer while watchers that keep up have much to take, for [`WAITS`] times [`PATIENCE`] at most.
    pub(crate) fn wait_for_watchers(&self) {
        for _ in 0..WAITS {
            let mut hub = self.hub();
            let Some(drained) = hub.begin_wait() else { return };
            let waited = drained.wait_timeout_while(hub, PATIENCE, |hub| hub.is_ahead());
            let (mut hub, waited) = waited.expect("no method of the hub panics");
            if !waited.timed_out() {
                return;
            }
            hub.end_wait();
        }
    }

    pub(crate) fn lessor(&self) -> MutexGuard<'_, Lessor> {
        self.lessor.lock().expect("no method of the lessor panics")
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, ValueCache> {
        self.cache.lock().expect("no method of the cache panics")
    }

    /// The newest published revision.
    pub(crate) fn revision(&self) -> Revision {
        self.state().published
    }

    /// Serves a read at the newest published revision, or at an older one.
    pub(crate) async fn range(&self, range: &Range) -> Result<Page, RequestError> {
        loop {
            let (selection, removals) = {
                let state = self.state();
                (range.select(&state.index, state.published, state.compacted)?, state.removals)
            };
            if !selection.needs_values() {
                return Ok(selection.finish(Vec::new()));
            }
            let rows = selection.entries.iter().map(|(key, entry)| (key.clone(), entry.modified)).collect();
            let values = self.values(rows).await?;
            if let Some(values) = values.into_iter().collect() {
                return Ok(selection.finish(values));
            }
            // A compaction came between the choice and the values: choose again.
            if !self.state().removals.explain(removals) {
                return Err(self.lost_row());
            }
        }
    }

    /// Has the writer do a transaction.
    pub(crate) async fn txn(&self, txn: Txn) -> Result<TxnReply, RequestError> {
        txn.check()?;
        self.command(|reply| Command::Txn { txn, reply }).await
    }

    /// Sends a command to the writer and waits until it is done, and durable where it writes.
    pub(crate) async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, RequestError>>) -> Command,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| self.stopped_error())?;
        answer.await.map_err(|_| self.stopped_error())?
    }

    /// Gives a lease its full time again. Returns its seconds, or `None` if there is no such lease.
    pub(crate) async fn renew(&self, id: LeaseId) -> Result<Option<i64>, RequestError> {
        let Some(renewal) = self.lessor().renew(id, Instant::now()) else { return Ok(None) };
        self.lessor_changed.notify_one();
        if renewal.first {
            self.command(|reply| Command::KeepLease { id, reply }).await?;
        }
        Ok(Some(renewal.ttl))
    }

    pub(crate) fn lease_state(&self, id: LeaseId) -> Option<LeaseState> {
        self.lessor().state(id, Instant::now())
    }

    /// Ends leases when their time is over. Runs until the store stops; sleeps until the next end.
    pub(crate) async fn expire_leases(&self) {
        loop {
            let expired = self.lessor().expired(Instant::now());
            for id in &expired {
                match self.command(|reply| Command::Revoke { id: *id, reply }).await {
                    // Somebody else revoked it first.
                    Ok(_) | Err(RequestError::LeaseNotFound) => {}
                    Err(RequestError::Stopped(_)) => return,
                    Err(error) => {
                        tracing::warn!(lease = %id, %error, "An expired lease could not be ended; trying again.");
                        self.lessor().renew(*id, Instant::now());
                    }
                }
            }
            let earliest = self.lessor().earliest();
            let until_next = async {
                match earliest {
                    Some(earliest) => tokio::time::sleep_until(earliest).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = until_next => {}
                () = self.lessor_changed.notified() => {}
                () = self.stopped.cancelled() => return,
            }
        }
    }

    /// Tells the one who waits for ends of leases that there are other ends now.
    pub(crate) fn leases_changed(&self) {
        self.lessor_changed.notify_one();
    }

    /// The values of live rows, in their order, from the cache or else from the log; `None` where compaction has
    /// deleted the row.
    pub(crate) async fn values(&self, rows: Vec<(Key, Revision)>) -> Result<Vec<Option<Bytes>>, RequestError> {
        let mut values: Vec<Option<Bytes>> = {
            let mut cache = self.cache();
            rows.iter().map(|(_, revision)| cache.get(*revision)).collect()
        };
        let missing: Vec<usize> = (0..rows.len()).filter(|&i| values[i].is_none()).collect();
        if missing.is_empty() {
            return Ok(values);
        }
        let wanted: Vec<_> = missing.iter().map(|&i| rows[i].clone()).collect();
        let read = self.read_values(wanted).await?;
        let mut cache = (missing.len() <= FEW_ROWS).then(|| self.cache());
        for (i, value) in missing.into_iter().zip(read) {
            if let (Some(cache), Some(value)) = (&mut cache, &value) {
                cache.insert(rows[i].1, value.clone());
            }
            values[i] = value;
        }
        Ok(values)
    }

    pub(crate) async fn size(&self) -> Result<Size, RequestError> {
        self.read(Reader::size).await
    }

    pub(crate) fn has_no_space(&self) -> bool {
        self.space.is_short()
    }

    /// Reads values that are not in the cache. A few are read in place: two reads from the kernel's cache take less than
    /// the way to another thread and back.
    async fn read_values(&self, rows: Vec<(Key, Revision)>) -> Result<Vec<Option<Bytes>>, RequestError> {
        if rows.len() <= FEW_ROWS
            && let Some(reader) = self.readers.try_lend()
        {
            return reader.values(&rows).map_err(storage_failed);
        }
        self.read(move |reader| reader.values(&rows)).await
    }

    /// Runs a query on a connection of the pool, off the runtime's threads.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Reader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, RequestError> {
        let reader = self.readers.lend().await.ok_or_else(|| self.stopped_error())?;
        spawn_blocking(move || query(&reader)).await.map_err(storage_failed)?.map_err(storage_failed)
    }

    /// Waits for the reads under way and closes the connections that read.
    pub(crate) async fn close_readers(&self) {
        self.readers.close().await;
    }

    /// When progress notifications are due next: the same moments for all watchers, so that they wake us together.
    pub(crate) fn next_tick(&self) -> Instant {
        let interval = self.progress_interval.max(Duration::from_millis(1));
        let passed = self.opened.elapsed().as_nanos() / interval.as_nanos();
        self.opened + interval * u32::try_from(passed + 1).unwrap_or(u32::MAX)
    }

    /// Whether the writer has ended.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Notes why the writer has ended; `None` if it was asked to.
    pub(crate) fn stop(&self, failure: Option<Error>) {
        if let Some(failure) = failure {
            // Only the first reason counts.
            let _ = self.failure.set(failure);
        }
        self.stopped.cancel();
    }

    /// Waits until the writer has ended and tells why.
    pub(crate) async fn stopped(&self) -> Error {
        self.stopped.cancelled().await;
        self.failure.get().cloned().unwrap_or(Error::Closed)
    }

    fn stopped_error(&self) -> RequestError {
        let reason = self.failure.get().unwrap_or(&Error::Closed);
        RequestError::Stopped(reason.to_string())
    }

    pub(crate) fn lost_row(&self) -> RequestError {
        RequestError::Storage(format!("a row of {} is gone that should be there", self.path.display()))
    }

    /// Has the writer close the log, and waits for nothing.
    pub(crate) fn abandon(&self) {
        let (reply, _) = oneshot::channel();
        // It has ended already, or so much waits for it that the process is not about to go on.
        let _ = self.commands.try_send(Command::Close { reply });
    }

    pub(crate) async fn close_writer(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        // If the writer has ended already, the reason is in `failure`.
        if self.commands.send(Command::Close { reply }).await.is_err() {
            return Err(self.stopped().await);
        }
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(self.stopped().await),
        }
    }
}

fn storage_failed(error: impl std::error::Error) -> RequestError {
    RequestError::Storage(error.to_string())
}
