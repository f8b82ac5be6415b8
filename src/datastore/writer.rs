//! The one task that writes.
//!
//! It takes all commands that wait, does them one after the other in one transaction of the log, commits once, and
//! then publishes: revision, events and attached leases change in one step. Only then are the commands answered.
//! Between commits it goes on with a compaction, a bounded step at a time, and before a batch it waits for watchers who
//! have much to take.
//!
//! ```text
//! commands ─► decide on the index, append ─► commit (fsync) ─► publish ─► answer
//!                 ▲                              │ fails
//!                 └──── next batch ◄── take the rows back, refuse the batch; stop, unless only the disk is full
//! ```

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::error::{Error, RequestError};
use crate::index::{Entry, Superseded};
use crate::key::Key;
use crate::lease;
use crate::log::sqlite::{self, SqliteLog};
use crate::revision::{LeaseId, Revision};
use crate::store::Store;
use crate::txn::{Failure, Row, Sources, Txn, TxnReply, View};
use crate::watch::Event;

/// Transactions that one commit takes at most.
const BATCH: usize = 512;
/// Keys that one step of a compaction looks at, and rows that one step deletes; a step holds writers up.
const COMPACT_KEYS: usize = 8192;
const COMPACT_ROWS: usize = 512;

/// A compaction is durable before its first row is deleted.
const NOT_DELETED: &str =
    "the revision is compacted, but there is no room to delete its rows: the next compaction will";

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// What the writer can be asked to do.
pub(crate) enum Command {
    Txn {
        txn: Txn,
        reply: Reply<TxnReply>,
    },
    /// Grants a lease; id zero asks for a new one. Answers with id and seconds.
    Grant {
        id: LeaseId,
        ttl: i64,
        reply: Reply<(LeaseId, i64)>,
    },
    /// Ends a lease and deletes its keys.
    Revoke {
        id: LeaseId,
        reply: Reply<Revision>,
    },
    /// Notes that a lease was renewed, so that it starts with its full time after a restart.
    KeepLease {
        id: LeaseId,
        reply: Reply<()>,
    },
    /// Forgets what was before a revision. Answers once that is durable, or with `physical` once the rows are gone.
    Compact {
        revision: Revision,
        physical: bool,
        reply: Reply<Revision>,
    },
    Defragment {
        reply: Reply<()>,
    },
    Close {
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

/// See the module's text.
pub(crate) struct Writer {
    store: Arc<Store>,
    log: SqliteLog,
    commands: mpsc::Receiver<Command>,
    /// The newest revision in the index, published or not.
    head: Revision,
    compaction: Compaction,
    /// A command that was taken from the queue but does not fit the batch.
    postponed: Option<Command>,
}

/// What is left to do of a compaction.
enum Compaction {
    Done,
    /// The index is searched, from this key on, for rows that nobody can read any more.
    Searching {
        resume: Option<Key>,
        found: Vec<Revision>,
        waiting: Vec<Reply<Revision>>,
    },
    /// They are deleted in the order of their revisions, which is how they lie in the file. The next are the last here.
    Deleting {
        rows: Vec<Revision>,
        waiting: Vec<Reply<Revision>>,
    },
    /// Free pages go back to the file system.
    Shrinking,
}

/// A row that waits for its commit.
struct Pending {
    row: Row,
    /// The live entry that it replaces.
    replaced: Option<Entry>,
    /// The row that one had replaced: watchers have seen what it was, and nobody asks for it again.
    outdated: Option<Revision>,
}

impl Writer {
    pub(crate) fn new(store: Arc<Store>, log: SqliteLog, commands: mpsc::Receiver<Command>) -> Self {
        let head = store.revision();
        // An interrupted compaction left rows behind that nobody can read.
        let compaction = Compaction::begin(Vec::new());
        Self { store, log, commands, head, compaction, postponed: None }
    }

    /// Works until it is told to close, everybody has gone, or the log fails.
    pub(crate) fn run(mut self) {
        self.store.metrics.writer_is_here();
        let closing = loop {
            let step = match self.next_command() {
                Next::Command(Command::Close { reply }) => break Some(reply),
                Next::Command(command) => self.run_command(command),
                Next::Idle => Ok(()),
                Next::Gone => break None,
            };
            if let Err(failure) = step.and_then(|()| self.compaction_step()) {
                error!(path = %self.store.path.display(), error = %failure, "The datastore has stopped writing.");
                self.store.stop(Some(failure));
                self.log.rollback();
                return;
            }
        };
        let Self { store, log, .. } = self;
        let result = log.close();
        store.stop(result.as_ref().err().cloned());
        if let Some(reply) = closing {
            // Nobody may be waiting any more.
            let _ = reply.send(result);
        }
    }

    fn next_command(&mut self) -> Next {
        if let Some(command) = self.postponed.take() {
            return Next::Command(command);
        }
        if matches!(self.compaction, Compaction::Done) {
            return self.commands.blocking_recv().map_or(Next::Gone, Next::Command);
        }
        match self.commands.try_recv() {
            Ok(command) => Next::Command(command),
            Err(TryRecvError::Empty) => Next::Idle,
            Err(TryRecvError::Disconnected) => Next::Gone,
        }
    }

    fn run_command(&mut self, command: Command) -> Result<(), Error> {
        match command {
            Command::Txn { txn, reply } => {
                self.store.wait_for_watchers();
                let mut batch = vec![(txn, reply)];
                while batch.len() < BATCH {
                    match self.commands.try_recv() {
                        Ok(Command::Txn { txn, reply }) => batch.push((txn, reply)),
                        Ok(other) => {
                            self.postponed = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                self.run_batch(batch)
            }
            Command::Grant { id, ttl, reply } => self.answer(reply, |writer| writer.grant(id, ttl)),
            Command::Revoke { id, reply } => self.answer(reply, |writer| writer.revoke(id)),
            Command::KeepLease { id, reply } => self.answer(reply, |writer| writer.keep_lease(id)),
            Command::Compact { revision, physical, reply } => self.compact(revision, physical, reply),
            Command::Defragment { reply } => self.answer(reply, |writer| Ok(writer.log.defragment()?)),
            Command::Close { .. } => Ok(()),
        }
    }

    /// Does a command that is a batch of its own.
    fn answer<T>(&mut self, reply: Reply<T>, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<(), Error> {
        let (answer, outcome) = match work(self) {
            Ok(value) => (Ok(value), Ok(())),
            Err(Failure::Request(error)) => (Err(error), Ok(())),
            Err(Failure::Store(error)) => {
                let (refusal, outcome) = self.classify_error(error);
                (Err(refusal), outcome)
            }
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
        outcome
    }

    fn run_batch(&mut self, batch: Vec<(Txn, Reply<TxnReply>)>) -> Result<(), Error> {
        let started = Instant::now();
        let (txns, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut pending = Vec::new();
        let done = self.evaluate_all(&txns, &mut pending).and_then(|answers| {
            self.commit(&pending)?;
            Ok(answers)
        });
        // Whoever asked may have gone: a reply that nobody takes is no error.
        match done {
            Ok(answers) => {
                if !pending.is_empty() {
                    self.store.metrics.batch_done(started.elapsed());
                }
                self.publish(pending);
                replies.into_iter().zip(answers).for_each(|(reply, answer)| drop(reply.send(answer)));
                Ok(())
            }
            Err(error) => {
                self.rollback_index(&pending);
                let (refusal, outcome) = self.classify_error(error);
                replies.into_iter().for_each(|reply| drop(reply.send(Err(refusal.clone()))));
                outcome
            }
        }
    }

    /// The answer to each transaction, to be given once the rows are committed.
    fn evaluate_all(
        &mut self,
        txns: &[Txn],
        pending: &mut Vec<Pending>,
    ) -> Result<Vec<Result<TxnReply, RequestError>>, Error> {
        let mut space = SpaceCheck::default();
        let mut evaluate = |txn| match self.evaluate(txn, pending, &mut space) {
            Ok(answer) => Ok(Ok(answer)),
            Err(Failure::Request(error)) => Ok(Err(error)),
            Err(Failure::Store(error)) => Err(error),
        };
        txns.iter().map(&mut evaluate).collect()
    }

    /// Decides a transaction and appends its row, uncommitted.
    fn evaluate(&mut self, txn: &Txn, pending: &mut Vec<Pending>, space: &mut SpaceCheck) -> Result<TxnReply, Failure> {
        let store = Arc::clone(&self.store);
        let head = self.head;
        let decision = {
            let state = store.state();
            let view = View { index: &state.index, head, compacted: state.compacted };
            txn.decide(&view, &mut LogSources { store: &store, log: &self.log })?
        };
        if let Some(row) = &decision.row {
            if row.value.is_some() && space.is_short(&store) {
                return Err(RequestError::NoSpace.into());
            }
            self.append(row.clone(), pending)?;
        }
        let state = store.state();
        let view = View { index: &state.index, head, compacted: state.compacted };
        decision.replies(&view, &mut LogSources { store: &store, log: &self.log })
    }

    /// Appends a row to the log and the index; it is not published before [`Writer::publish`].
    fn append(&mut self, row: Row, pending: &mut Vec<Pending>) -> Result<(), Error> {
        let ttl = self.store.lessor().ttl(row.entry.lease);
        self.log.append(&row, ttl)?;
        let mut state = self.store.state_mut();
        let replaced = state.index.newest(&row.key).filter(|entry| !entry.is_tombstone());
        let outdated = state.index.before_newest(&row.key);
        state.index.push(&row.key, row.entry);
        drop(state);
        self.head = row.entry.modified;
        pending.push(Pending { row, replaced, outdated });
        Ok(())
    }

    fn commit(&mut self, pending: &[Pending]) -> Result<(), Error> {
        let newest = pending.last().map_or(Revision::ZERO, |last| last.row.entry.modified);
        let started = Instant::now();
        if self.log.commit(newest)? {
            self.store.metrics.committed(pending.len(), started.elapsed());
        }
        Ok(())
    }

    fn publish(&self, pending: Vec<Pending>) {
        let Some(last) = pending.last().map(|last| last.row.entry.modified) else { return };
        let mut state = self.store.state_mut();
        let mut hub = self.store.hub();
        let mut lessor = self.store.lessor();
        let mut cache = self.store.cache();
        hub.publish(pending.into_iter().map(|Pending { row, replaced, outdated }| {
            let Row { key, entry, value, .. } = row;
            lessor.attach(&key, replaced.map_or(LeaseId::NONE, |entry| entry.lease), entry.lease);
            if let Some(value) = &value {
                cache.insert(entry.modified, value.clone());
            }
            if let Some(outdated) = outdated {
                cache.forget(outdated);
            }
            Event { key, entry, value: value.unwrap_or_default(), previous: replaced }
        }));
        state.published = last;
    }

    /// Takes rows back whose transaction failed.
    fn rollback_index(&mut self, pending: &[Pending]) {
        self.log.rollback();
        let mut state = self.store.state_mut();
        let published = state.published;
        for Pending { row, .. } in pending {
            state.index.rollback(&row.key, published);
        }
        self.head = published;
    }

    /// What a failure of the log means: the answer to whoever asked, and whether writing can go on.
    fn classify_error(&mut self, error: Error) -> (RequestError, Result<(), Error>) {
        self.log.rollback();
        if sqlite::is_busy(&error) {
            warn!(path = %self.store.path.display(), "Another program locks the database; a write was refused.");
            (RequestError::Storage(error.to_string()), Ok(()))
        } else if sqlite::is_full(&error) {
            self.store.space.ran_out();
            (RequestError::NoSpace, Ok(()))
        } else {
            (RequestError::Stopped(error.to_string()), Err(error))
        }
    }

    fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<(LeaseId, i64), Failure> {
        let ttl = lease::grantable(ttl)?;
        let id = {
            let lessor = self.store.lessor();
            if lessor.contains(id) {
                return Err(RequestError::LeaseExists.into());
            }
            if id.is_none() { lessor.unused_id() } else { id }
        };
        if SpaceCheck::default().is_short(&self.store) {
            return Err(RequestError::NoSpace.into());
        }
        self.log.put_lease(id, ttl, true)?;
        self.commit(&[])?;
        self.store.lessor().insert(id, ttl, lease::deadline(Instant::now(), ttl), false);
        self.store.leases_changed();
        Ok((id, ttl))
    }

    fn revoke(&mut self, id: LeaseId) -> Result<Revision, Failure> {
        let keys = self.store.lessor().keys(id).ok_or(RequestError::LeaseNotFound)?;
        let mut pending = Vec::new();
        let mut run = || {
            for key in &keys {
                let entry = self.store.state().index.newest(key);
                if let Some(entry) = entry.filter(|entry| entry.lease == id) {
                    self.append(Row::tombstone(key, entry, self.head), &mut pending)?;
                }
            }
            self.log.delete_lease(id)?;
            self.commit(&pending)
        };
        if let Err(error) = run() {
            self.rollback_index(&pending);
            return Err(error.into());
        }
        self.publish(pending);
        self.store.lessor().remove(id);
        self.store.leases_changed();
        debug!(lease = %id, keys = keys.len(), "A lease has ended.");
        Ok(self.head)
    }

    fn keep_lease(&mut self, id: LeaseId) -> Result<(), Failure> {
        let ttl = self.store.lessor().ttl(id);
        // It may have ended since.
        if ttl > 0 {
            self.log.put_lease(id, ttl, false)?;
            self.commit(&[])?;
        }
        Ok(())
    }

    fn compact(&mut self, revision: Revision, physical: bool, reply: Reply<Revision>) -> Result<(), Error> {
        let compacted = self.store.state().compacted;
        let work = if revision > self.head {
            Err(Failure::from(RequestError::FutureRevision))
        } else if revision <= compacted {
            Err(Failure::from(RequestError::Compacted))
        } else {
            self.log.set_compacted(revision).and_then(|()| self.commit(&[])).map_err(Failure::from)
        };
        if let Err(failure) = work {
            return self.answer(reply, |_| Err(failure));
        }
        self.store.state_mut().compacted = revision;
        self.store.metrics.compaction_begun();
        debug!(%revision, "Compacting the datastore.");
        let mut waiting = match std::mem::replace(&mut self.compaction, Compaction::Done) {
            Compaction::Searching { waiting, .. } | Compaction::Deleting { waiting, .. } => waiting,
            Compaction::Done | Compaction::Shrinking => Vec::new(),
        };
        if physical {
            waiting.push(reply);
        } else {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(self.head));
        }
        self.compaction = Compaction::begin(waiting);
        Ok(())
    }

    /// One step of whatever is not for anybody in particular.
    fn compaction_step(&mut self) -> Result<(), Error> {
        self.compaction = match std::mem::replace(&mut self.compaction, Compaction::Done) {
            Compaction::Done => Compaction::Done,
            Compaction::Searching { resume, mut found, waiting } => {
                let newest = self.log.newest_row();
                let state = self.store.state();
                let Superseded { mut revisions, resume } =
                    state.index.superseded(resume.as_ref(), state.compacted, newest, COMPACT_KEYS);
                found.append(&mut revisions);
                if resume.is_some() {
                    Compaction::Searching { resume, found, waiting }
                } else {
                    found.sort_unstable_by(|a, b| b.cmp(a));
                    Compaction::Deleting { rows: found, waiting }
                }
            }
            Compaction::Deleting { mut rows, waiting } => match self.delete_compacted(&mut rows) {
                Ok(()) if rows.is_empty() => {
                    answer_all(waiting, &Ok(self.head));
                    Compaction::Shrinking
                }
                Ok(()) => Compaction::Deleting { rows, waiting },
                Err(error) => {
                    let (refusal, outcome) = self.classify_error(error);
                    // That would say that nothing is compacted.
                    let refusal = match refusal {
                        RequestError::NoSpace => RequestError::Storage(NOT_DELETED.to_owned()),
                        other => other,
                    };
                    answer_all(waiting, &Err(refusal));
                    outcome?;
                    Compaction::Done
                }
            },
            Compaction::Shrinking => match self.log.shrink() {
                Ok(true) => Compaction::Shrinking,
                Ok(false) => Compaction::Done,
                // The file stays as long as it is until the next compaction.
                Err(error) if sqlite::is_full(&error) => Compaction::Done,
                Err(error) => return Err(error),
            },
        };
        match self.log.checkpoint_if_due() {
            // The log keeps what could not be copied.
            Err(error) if sqlite::is_full(&error) => Ok(()),
            other => other,
        }
    }

    /// Deletes the next compacted rows; takes them from the list.
    fn delete_compacted(&mut self, rows: &mut Vec<Revision>) -> Result<(), Error> {
        let started = Instant::now();
        let mut step = rows.split_off(rows.len().saturating_sub(COMPACT_ROWS));
        step.reverse();
        let compacted = {
            let mut state = self.store.state_mut();
            state.removals.under_way = !step.is_empty();
            state.compacted
        };
        let deleted = self.log.delete(&step, compacted).and_then(|deleted| {
            self.commit(&[])?;
            Ok(deleted)
        });
        let mut state = self.store.state_mut();
        state.removals.under_way = false;
        for (key, revision) in deleted? {
            state.index.remove(&key, revision);
        }
        state.removals.done += 1;
        drop(state);
        self.store.metrics.compaction_step(step.len(), started.elapsed());
        Ok(())
    }
}

impl Compaction {
    /// What is to be done after the compacted revision has moved.
    fn begin(waiting: Vec<Reply<Revision>>) -> Self {
        Self::Searching { resume: None, found: Vec::new(), waiting }
    }
}

fn answer_all(waiting: Vec<Reply<Revision>>, answer: &Result<Revision, RequestError>) {
    for reply in waiting {
        // Whoever asked may have gone.
        let _ = reply.send(answer.clone());
    }
}

/// What the writer does next.
enum Next {
    Command(Command),
    /// Nobody asks for anything, but there is work left.
    Idle,
    /// Nobody can ask any more.
    Gone,
}

/// What transactions read beside the index.
struct LogSources<'a> {
    store: &'a Store,
    log: &'a SqliteLog,
}

impl Sources for LogSources<'_> {
    fn value(&mut self, key: &Key, revision: Revision) -> Result<Bytes, Error> {
        if let Some(value) = self.store.cache().get(revision) {
            return Ok(value);
        }
        self.log.value(key, revision)?.ok_or_else(|| Error::Damaged {
            path: self.store.path.clone(),
            finding: format!("row {revision} is gone that should be there"),
        })
    }

    fn has_lease(&self, lease: LeaseId) -> bool {
        self.store.lessor().contains(lease)
    }
}

/// Whether there is room for new data, looked up at most once per batch.
#[derive(Default)]
struct SpaceCheck(Option<bool>);

impl SpaceCheck {
    fn is_short(&mut self, store: &Store) -> bool {
        *self.0.get_or_insert_with(|| store.space.look())
    }
}
