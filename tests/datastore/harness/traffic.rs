//! What kube-apiservers ask of a datastore, on few keys and from many clients, so that they get in each other's way.
//!
//! The mix is that of etcd's own robustness tests: reads are mostly a list and then a watch from there, writes are
//! nine updates of ten. A client goes on until the server does not answer any more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use anyhow::Result;
use fastrand::Rng;
use tokio::task::JoinSet;

use crate::{
    client::{Session, Shared, Watcher},
    history::{Answer, Body, Keys, Operation, Refusal, Request, Revision, Wanted, Watch},
    server::Server,
};

const WRITERS: usize = 6;
const REFLECTORS: usize = 3;
/// Objects that the writers share, in each of [`KINDS`].
const OBJECTS: usize = 5;
const KINDS: [&str; 2] = ["/registry/pods/", "/registry/leases/"];
/// Where keys are attached to leases.
const EVENTS: &str = "/registry/events/";
/// Revisions between two compactions.
const COMPACT: i64 = 30;

/// What a client has asked and watched.
pub(crate) struct Trace {
    pub(crate) operations: Vec<Operation>,
    /// Those that went on to the server's end.
    pub(crate) unfinished: Vec<Watch>,
    pub(crate) finished: Vec<Watch>,
}

impl Trace {
    fn of(session: Session, unfinished: Option<Watcher>) -> Self {
        let unfinished = unfinished.into_iter().map(|watcher| watcher.watch).collect();
        Self { operations: session.operations, unfinished, finished: session.watches }
    }
}

/// The newest revision that the witness has seen: what is newer must not be compacted, else nobody could tell
/// afterwards what had happened.
#[derive(Clone)]
struct Witnessed(Arc<AtomicI64>);

/// Starts all clients. They go on until the server ends; the first is the witness, who watches all keys.
pub(crate) async fn start(
    server: &Server,
    shared: Shared,
    since: Revision,
    rng: &mut Rng,
) -> Result<JoinSet<Result<Trace>>> {
    let mut clients = JoinSet::new();
    let witnessed = Witnessed(Arc::new(AtomicI64::new(since)));
    let session = async || Session::connect(server, shared.clone()).await;
    clients.spawn(witness(session().await?, since + 1, witnessed.clone()));
    for _ in 0..WRITERS {
        clients.spawn(writer(session().await?, rng.fork()));
    }
    for _ in 0..REFLECTORS {
        clients.spawn(reflector(session().await?, rng.fork()));
    }
    clients.spawn(historian(session().await?, rng.fork(), witnessed));
    clients.spawn(leaseholder(session().await?, rng.fork()));
    Ok(clients)
}

/// Watches everything.
async fn witness(mut session: Session, start: Revision, witnessed: Witnessed) -> Result<Trace> {
    let mut watcher = session.watch(Keys::all(), start, Wanted::All).await;
    if let Some(watcher) = &mut watcher {
        while watcher.next().await?.is_some() {
            witnessed.0.store(watcher.watch.next_revision() - 1, Ordering::Relaxed);
        }
    }
    Ok(Trace::of(session, watcher))
}

/// Creates, updates and deletes objects, knowing only what it was told last.
async fn writer(mut session: Session, mut rng: Rng) -> Result<Trace> {
    let mut known: HashMap<String, Revision> = HashMap::new();
    loop {
        let key = format!("{}{}", rng.choice(KINDS).unwrap_or_default(), rng.usize(..OBJECTS));
        let guard = known.get(&key).copied().unwrap_or_default();
        let or_read = rng.u8(..10) != 0;
        let value = session.shared.value(rng.usize(..2500));
        let request = match rng.u8(..100) {
            0..5 => Request::Range { keys: Keys::One(key.clone()), revision: None, limit: 0 },
            5..10 if guard > 0 => Request::Delete { key: key.clone(), guard, or_read },
            10..13 => Request::Put { key: key.clone(), value, lease: 0, guard: None, or_read: false },
            _ => Request::Put { key: key.clone(), value, lease: 0, guard: Some(guard), or_read },
        };
        let deletes = matches!(request, Request::Delete { .. });
        let Some(answer) = session.ask(request).await? else { break };
        let now = match answer {
            Ok(Answer::Written { .. }) if deletes => 0,
            Ok(Answer::Written { revision }) => revision,
            Ok(Answer::Mismatch { found: Some(found), .. }) => found.map_or(0, |found| found.modified),
            Ok(Answer::Range { found, .. }) => found.first().map_or(0, |found| found.modified),
            // It knows that it knows nothing: it tries the other thing.
            Ok(Answer::Mismatch { found: None, .. }) => 0,
            Ok(Answer::Done { .. }) | Err(_) => guard,
        };
        known.insert(key, now);
    }
    Ok(Trace::of(session, None))
}

/// Lists, then watches from there; now and then it starts again from where it was, or from a new list.
async fn reflector(mut session: Session, mut rng: Rng) -> Result<Trace> {
    loop {
        let prefix = if rng.bool() { rng.choice(KINDS).unwrap_or_default() } else { "/registry/" };
        let keys = Keys::Prefix(prefix.to_owned());
        let limit = if rng.bool() { 0 } else { rng.i64(1..4) };
        let list = Request::Range { keys: keys.clone(), revision: None, limit };
        let Some(Ok(Answer::Range { revision, .. })) = session.ask(list).await? else { break };
        if limit > 0 {
            // The list's other pages, of the same moment.
            let rest = Request::Range { keys: keys.clone(), revision: Some(revision), limit: 0 };
            if session.ask(rest).await?.is_none() {
                break;
            }
        }
        let wanted = *rng.choice(&[Wanted::All, Wanted::All, Wanted::Puts, Wanted::Deletes]).unwrap_or(&Wanted::All);
        let mut start = revision + 1;
        for _ in 0..rng.u8(1..4) {
            let Some(mut watcher) = session.watch(keys.clone(), start, wanted).await else {
                return Ok(Trace::of(session, None));
            };
            for _ in 0..rng.u8(1..40) {
                if rng.u8(..4) == 0 {
                    watcher.ask_progress().await;
                }
                match watcher.next().await? {
                    None => return Ok(Trace::of(session, Some(watcher))),
                    Some(Body::Compacted(_)) => break,
                    Some(_) => {}
                }
            }
            start = watcher.watch.next_revision();
            session.watches.push(watcher.watch);
        }
    }
    Ok(Trace::of(session, None))
}

/// Reads the past, also where there is none, and makes it shorter, and the file.
async fn historian(mut session: Session, mut rng: Rng, witnessed: Witnessed) -> Result<Trace> {
    let mut compacted = witnessed.0.load(Ordering::Relaxed);
    loop {
        let seen = witnessed.0.load(Ordering::Relaxed);
        let request = if seen > compacted + COMPACT {
            compacted = seen - rng.i64(0..COMPACT / 2);
            Request::Compact { revision: compacted, physical: rng.bool() }
        } else {
            let keys = rng.choice(KINDS).unwrap_or_default().to_owned();
            let revision = rng.i64((compacted - 10).max(1)..seen.max(compacted) + 10);
            Request::Range { keys: Keys::Prefix(keys), revision: Some(revision), limit: rng.i64(0..3) }
        };
        if session.ask(request).await?.is_none() || rng.u8(..100) == 0 && !session.defragment().await {
            return Ok(Trace::of(session, None));
        }
    }
}

/// Attaches keys to leases, and ends these.
async fn leaseholder(mut session: Session, mut rng: Rng) -> Result<Trace> {
    'server: loop {
        let lease = rng.i64(1..i64::MAX);
        let Some(granted) = session.ask(Request::Grant { lease }).await? else { break };
        if granted == Err(Refusal::NoSpace) {
            continue;
        }
        for _ in 0..rng.u8(1..6) {
            let key = format!("{EVENTS}{}", rng.usize(..OBJECTS));
            let value = session.shared.value(rng.usize(..300));
            let put = Request::Put { key, value, lease, guard: None, or_read: false };
            if session.ask(put).await?.is_none() {
                break 'server;
            }
        }
        if rng.bool() && session.ask(Request::Revoke { lease }).await?.is_none() {
            break;
        }
    }
    Ok(Trace::of(session, None))
}
