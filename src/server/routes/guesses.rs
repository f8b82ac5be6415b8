//! Passwords and bootstrap tokens that are not known to be right: so many of one source, and no more.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k3s_http::Status;
use k3s_listener::{Rate, Sources};
use tokio::time::Instant;

/// Wrong ones of one source. Many nodes may come from one address, but what they bring is right.
const WRONG: Rate = Rate { burst: 50, interval: Duration::from_millis(200) };

/// What each source has guessed.
#[derive(Debug)]
pub(super) struct Guesses(Mutex<Sources>);

/// One that is being checked. It counts as wrong unless it turns out otherwise.
#[derive(Debug)]
pub(super) struct Guess<'a> {
    guesses: &'a Guesses,
    source: IpAddr,
}

impl Guesses {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Sources::new(WRONG)))
    }

    /// Before it is checked: a source that was wrong too often has to wait.
    pub(super) fn begin(&self, source: IpAddr) -> Result<Guess<'_>, Status> {
        if self.sources().spend(source, Instant::now()) {
            return Ok(Guess { guesses: self, source });
        }
        Err(Status::too_many_requests("Too many requests, please try again later."))
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guess<'_> {
    /// It is right, or could not be checked.
    pub(super) fn not_wrong(self) {
        self.guesses.sources().give_back(self.source);
    }
}
