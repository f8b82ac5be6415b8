//! The requests of one connection, and whose turn it is in each.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;
use tokio::time::{Duration, Instant};

/// The requests of one connection.
#[derive(Debug)]
pub struct Requests {
    opened: Instant,
    state: Mutex<State>,
    /// Who waits for the last one to end.
    driver: AtomicWaker,
}

/// A request until its answer has ended.
///
/// At first it is the client's turn: what it has to send may be missing. Once there is an answer, it is the client's turn whenever a
/// piece waits for it to be taken.
#[derive(Debug)]
pub struct Running {
    requests: Arc<Requests>,
    id: u64,
    turn: Arc<Turn>,
}

#[derive(Debug)]
struct State {
    running: BTreeMap<u64, Arc<Turn>>,
    next: u64,
    quiet_since: Instant,
    reading_since: Option<Instant>,
}

/// Since when it is the client's turn: milliseconds since the connection was opened; [`OURS`] while it is not.
#[derive(Debug)]
struct Turn(AtomicU64);

const OURS: u64 = u64::MAX;

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Requests that run.
    pub(crate) running: usize,
    /// No request has come yet.
    pub(crate) is_new: bool,
    /// When the last one ended, or the connection was opened.
    pub(crate) quiet_since: Instant,
    /// When the client began to send something while nothing ran: on HTTP/1.1, the head of a request.
    pub(crate) reading_since: Option<Instant>,
    /// For how long it has been the client's turn in the request where that is longest.
    pub(crate) waiting_since: Option<Instant>,
}

impl Requests {
    /// None has come yet.
    pub fn new() -> Arc<Self> {
        let opened = Instant::now();
        let state = State { running: BTreeMap::new(), next: 0, quiet_since: opened, reading_since: None };
        Arc::new(Self { opened, state: Mutex::new(state), driver: AtomicWaker::new() })
    }

    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Running {
        let mut state = self.state();
        let (id, turn) = (state.next, Arc::new(Turn(AtomicU64::new(self.now()))));
        state.next += 1;
        state.running.insert(id, turn.clone());
        state.reading_since = None;
        drop(state);
        Running { requests: self.clone(), id, turn }
    }

    /// Something came from the client.
    pub(crate) fn read(&self) {
        let mut state = self.state();
        if state.running.is_empty() && state.reading_since.is_none() {
            state.reading_since = Some(Instant::now());
        }
    }

    /// `of_stranger` tells whether it matters whose turn it is.
    pub(crate) fn snapshot(&self, of_stranger: bool) -> Snapshot {
        let state = self.state();
        let turns = state.running.values().filter(|_| of_stranger);
        let oldest = turns.map(|turn| turn.0.load(Ordering::Relaxed)).min();
        Snapshot {
            running: state.running.len(),
            is_new: state.next == 0,
            quiet_since: state.quiet_since,
            reading_since: state.reading_since,
            waiting_since: oldest.filter(|turn| *turn != OURS).map(|turn| self.opened + Duration::from_millis(turn)),
        }
    }

    /// Has `waker` woken when the last request has ended.
    pub(crate) fn wake_when_quiet(&self, waker: &Waker) {
        self.driver.register(waker);
    }

    /// Milliseconds since the connection was opened.
    fn now(&self) -> u64 {
        // 500 million years.
        self.opened.elapsed().as_millis() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No method of it panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// There is something for the client to take.
    pub fn wait_for_client(&self) {
        self.turn.0.store(self.requests.now(), Ordering::Relaxed);
    }

    /// The client has taken all that there was.
    pub fn wait_for_us(&self) {
        self.turn.0.store(OURS, Ordering::Relaxed);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.requests.state();
        state.running.remove(&self.id);
        if state.running.is_empty() {
            state.quiet_since = Instant::now();
            drop(state);
            self.requests.driver.wake();
        }
    }
}
