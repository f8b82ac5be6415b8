//! Asks a datastore, and records what it was asked and what it said.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, bail};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, Error, EventType, GetOptions, GetResponse, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};
use tokio::{sync::mpsc::UnboundedSender, time::timeout};

use crate::{
    history::{
        Answer, Body, Change, Clock, Event, KeyValue, Keys, Message, Operation, Outcome, Refusal, Request, Revision,
        Value, Wanted, Watch,
    },
    server::{PATIENCE, Server},
};

/// Seconds that a lease is granted for: no test lasts so long.
const TTL: i64 = 3600;

/// Tells of a client's progress, so that something can happen in the midst of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// A compaction is being asked for.
    Compacting,
    /// A request to change something has got its answer, or will never.
    Finished,
}

/// What all clients of a history share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) beats: UnboundedSender<Beat>,
    /// The next value's number.
    pub(crate) numbers: Arc<AtomicU64>,
}

impl Shared {
    /// A value that was never written.
    pub(crate) fn value(&self, padding: usize) -> Value {
        Value::Ours { number: self.numbers.fetch_add(1, Ordering::Relaxed), padding }
    }
}

/// A client with a connection of its own.
pub(crate) struct Session {
    client: Client,
    pub(crate) shared: Shared,
    /// What it has asked so far.
    pub(crate) operations: Vec<Operation>,
    /// What it has watched, and does no more.
    pub(crate) watches: Vec<Watch>,
}

impl Session {
    pub(crate) async fn connect(server: &Server, shared: Shared) -> Result<Self> {
        Ok(Self { client: server.connect().await?, shared, operations: Vec::new(), watches: Vec::new() })
    }

    /// Asks. `None` when nobody knows what became of it.
    ///
    /// # Errors
    /// There is no answer of any kind.
    pub(crate) async fn ask(&mut self, request: Request) -> Result<Option<Result<Answer, Refusal>>> {
        if matches!(request, Request::Compact { .. }) {
            self.beat(Beat::Compacting);
        }
        let called = self.shared.clock.now();
        let answer = timeout(PATIENCE, send(&mut self.client, &request)).await;
        let answer = answer.with_context(|| format!("no answer in {PATIENCE:?} to {request:?}"))?;
        let at = self.shared.clock.now();
        let (outcome, reply) = match answer {
            Ok(answer) => (Outcome::Answered { at, answer: answer.clone() }, Some(Ok(answer))),
            Err(error) => match refusal(&error) {
                Some(refusal) => (Outcome::Refused { at, refusal }, Some(Err(refusal))),
                None => (Outcome::Unknown { error: error.to_string() }, None),
            },
        };
        if !matches!(request, Request::Range { .. }) {
            self.beat(Beat::Finished);
        }
        self.operations.push(Operation { request, called, outcome });
        Ok(reply)
    }

    /// Has the store rewrite its file, which changes nothing that it holds. Returns whether the server is still there.
    pub(crate) async fn defragment(&mut self) -> bool {
        self.client.defragment().await.is_ok()
    }

    /// Opens a watch. `None` when the server is gone.
    pub(crate) async fn watch(&mut self, keys: Keys, start: Revision, wanted: Wanted) -> Option<Watcher> {
        let mut options = WatchOptions::new().with_start_revision(start).with_prev_key().with_progress_notify();
        options = match wanted {
            Wanted::All => options,
            Wanted::Puts => options.with_filters([WatchFilterType::NoDelete]),
            Wanted::Deletes => options.with_filters([WatchFilterType::NoPut]),
        };
        let (key, options) = match &keys {
            Keys::One(key) => (key, options),
            Keys::Prefix(prefix) => (prefix, options.with_prefix()),
        };
        let called = self.shared.clock.now();
        let stream = self.client.watch(key.as_str(), Some(options)).await.ok()?;
        let watch = Watch { keys: keys.clone(), start, wanted, called, messages: Vec::new() };
        Some(Watcher { stream, clock: self.shared.clock, watch })
    }

    fn beat(&self, beat: Beat) {
        // Nobody listens any more once the server was killed.
        let _ = self.shared.beats.send(beat);
    }
}

/// A watch that goes on.
pub(crate) struct Watcher {
    stream: WatchStream,
    clock: Clock,
    /// What it was told so far.
    pub(crate) watch: Watch,
}

impl Watcher {
    /// Waits for the next message. `None` when the stream is at its end.
    ///
    /// # Errors
    /// It says something that no watch says.
    pub(crate) async fn next(&mut self) -> Result<Option<&Body>> {
        loop {
            let Ok(Some(message)) = self.stream.message().await else { return Ok(None) };
            if let Some(body) = body(&message)? {
                self.watch.messages.push(Message { at: self.clock.now(), body });
                return Ok(self.watch.messages.last().map(|message| &message.body));
            }
        }
    }

    /// Asks for a progress notification; the server may be gone.
    pub(crate) async fn ask_progress(&mut self) {
        // The stream's end tells.
        let _ = self.stream.request_progress().await;
    }
}

impl Watch {
    /// The first revision that it has not been told about.
    pub(crate) fn next_revision(&self) -> Revision {
        let told = self.messages.iter().flat_map(|message| match &message.body {
            Body::Events(events) => events.iter().map(Event::revision).max(),
            Body::Progress(revision) => Some(*revision),
            Body::Compacted(_) => None,
        });
        told.max().map_or(self.start, |told| self.start.max(told + 1))
    }
}

async fn send(client: &mut Client, request: &Request) -> Result<Answer, Error> {
    match request {
        Request::Range { keys, revision, limit } => {
            let options = GetOptions::new().with_revision(revision.unwrap_or_default()).with_limit(*limit);
            let got = match keys {
                Keys::One(key) => client.get(key.as_str(), Some(options)).await?,
                Keys::Prefix(prefix) => client.get(prefix.as_str(), Some(options.with_prefix())).await?,
            };
            Ok(Answer::Range { revision: at(got.header())?, found: found(&got), count: got.count() })
        }
        Request::Put { key, value, lease, guard: None, .. } => {
            let put = client.put(key.as_str(), value.encode(), Some(PutOptions::new().with_lease(*lease))).await?;
            Ok(Answer::Written { revision: at(put.header())? })
        }
        Request::Put { key, value, lease, guard: Some(guard), or_read } => {
            let put = TxnOp::put(key.as_str(), value.encode(), Some(PutOptions::new().with_lease(*lease)));
            write(client, key, *guard, put, *or_read).await
        }
        Request::Delete { key, guard, or_read } => {
            write(client, key, *guard, TxnOp::delete(key.as_str(), None), *or_read).await
        }
        Request::Compact { revision, physical } => {
            let options = CompactionOptions::new();
            let options = if *physical { options.with_physical() } else { options };
            let compacted = client.compact(*revision, Some(options)).await?;
            Ok(Answer::Done { revision: at(compacted.header())? })
        }
        Request::Grant { lease } => {
            let options = etcd_client::LeaseGrantOptions::new().with_id(*lease);
            let granted = client.lease_grant(TTL, Some(options)).await?;
            Ok(Answer::Done { revision: at(granted.header())? })
        }
        Request::Revoke { lease } => {
            let revoked = client.lease_revoke(*lease).await?;
            Ok(Answer::Done { revision: at(revoked.header())? })
        }
    }
}

/// What Kubernetes sends to write an object: only if it is still at this revision; else say what it is.
async fn write(client: &mut Client, key: &str, guard: Revision, op: TxnOp, or_read: bool) -> Result<Answer, Error> {
    let txn = Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, guard)]).and_then([op]);
    let txn = if or_read { txn.or_else([TxnOp::get(key, None)]) } else { txn };
    let done = client.txn(txn).await?;
    let revision = at(done.header())?;
    if done.succeeded() {
        return Ok(Answer::Written { revision });
    }
    match &done.op_responses()[..] {
        [] => Ok(Answer::Mismatch { revision, found: None }),
        [TxnOpResponse::Get(got)] => Ok(Answer::Mismatch { revision, found: Some(found(got).into_iter().next()) }),
        other => Err(Error::Internal(format!("a guarded write was answered with {other:?}"))),
    }
}

fn at(header: Option<&ResponseHeader>) -> Result<Revision, Error> {
    header.map(ResponseHeader::revision).ok_or_else(|| Error::Internal("an answer has no header".to_owned()))
}

fn found(got: &GetResponse) -> Vec<KeyValue> {
    got.kvs().iter().map(key_value).collect()
}

fn key_value(pair: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        key: String::from_utf8_lossy(pair.key()).into_owned(),
        value: Value::decode(pair.value()),
        created: pair.create_revision(),
        modified: pair.mod_revision(),
        version: pair.version(),
        lease: pair.lease(),
    }
}

/// What an error says about the request, if it says that it was not done: etcd's texts.
fn refusal(error: &Error) -> Option<Refusal> {
    let Error::GRpcStatus(status) = error else { return None };
    match status.message() {
        "etcdserver: mvcc: required revision has been compacted" => Some(Refusal::Compacted),
        "etcdserver: mvcc: required revision is a future revision" => Some(Refusal::Future),
        "etcdserver: mvcc: database space exceeded" => Some(Refusal::NoSpace),
        _ => None,
    }
}

/// What a message says; `None` if only that the watch begins.
fn body(message: &WatchResponse) -> Result<Option<Body>> {
    if message.canceled() {
        return match message.compact_revision() {
            0 => bail!("a watch was cancelled: {:?}", message.cancel_reason()),
            compacted => Ok(Some(Body::Compacted(compacted))),
        };
    }
    if message.created() {
        return Ok(None);
    }
    if message.events().is_empty() {
        return Ok(Some(Body::Progress(at(message.header())?)));
    }
    let event = |event: &etcd_client::Event| {
        let pair = event.kv().context("an event has no key")?;
        let now = key_value(pair);
        let change = match event.event_type() {
            EventType::Put => Change::Put(now),
            EventType::Delete => Change::Delete { key: now.key, revision: now.modified },
        };
        Ok(Event { change, previous: event.prev_kv().map(key_value) })
    };
    Ok(Some(Body::Events(message.events().iter().map(event).collect::<Result<_>>()?)))
}
