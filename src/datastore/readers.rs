//! The connections that read.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::log::sqlite::Reader;

/// A few connections, each used by one read at a time.
pub(crate) struct Readers {
    idle: Arc<Mutex<Vec<Reader>>>,
    permits: Arc<Semaphore>,
    count: u32,
}

/// A connection on loan: it goes back when this is dropped.
pub(crate) struct Loan {
    /// `None` only while it goes back.
    reader: Option<Reader>,
    idle: Arc<Mutex<Vec<Reader>>>,
    _permit: OwnedSemaphorePermit,
}

impl Readers {
    pub(crate) fn new(readers: Vec<Reader>) -> Self {
        let permits = Arc::new(Semaphore::new(readers.len()));
        let count = u32::try_from(readers.len()).unwrap_or(u32::MAX);
        Self { idle: Arc::new(Mutex::new(readers)), permits, count }
    }

    /// Waits for a connection; `None` once they are closed.
    pub(crate) async fn lend(&self) -> Option<Loan> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        self.loan(permit)
    }

    /// A connection, if one is idle.
    pub(crate) fn try_lend(&self) -> Option<Loan> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        self.loan(permit)
    }

    /// Waits for the reads under way and closes the connections.
    pub(crate) async fn close(&self) {
        // An error means that somebody else has closed them already.
        if let Ok(all) = self.permits.acquire_many(self.count).await {
            self.permits.close();
            lock(&self.idle).clear();
            drop(all);
        }
    }

    fn loan(&self, permit: OwnedSemaphorePermit) -> Option<Loan> {
        let reader = lock(&self.idle).pop()?;
        Some(Loan { reader: Some(reader), idle: Arc::clone(&self.idle), _permit: permit })
    }
}

impl Deref for Loan {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        self.reader.as_ref().expect("it goes back only when the loan is dropped")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        lock(&self.idle).extend(self.reader.take());
    }
}

fn lock(idle: &Mutex<Vec<Reader>>) -> MutexGuard<'_, Vec<Reader>> {
    idle.lock().expect("a push or pop does not panic")
}
