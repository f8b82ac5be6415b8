//! What nodes have done, together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use load::Log;
use tokio::sync::watch;

#[derive(Clone)]
pub(crate) struct Ledger {
    /// Heartbeats since somebody looked, and what was refused.
    log: Arc<Mutex<Log>>,
    /// How many pods run.
    pub(crate) running: watch::Sender<usize>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { log: Arc::default(), running: watch::Sender::new(0) }
    }

    /// What was done since the last look.
    pub(crate) fn take(&self) -> Log {
        std::mem::take(&mut *self.log())
    }

    pub(crate) fn add(&self, heartbeat: Log) {
        let mut all = self.log();
        all.writes += heartbeat.writes;
        all.latencies.extend(heartbeat.latencies);
    }

    pub(crate) fn refused(&self) {
        self.log().refused += 1;
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
