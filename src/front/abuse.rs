//! Requests that their client gives up before they are answered, counted for its connection.
//!
//! On HTTP/2 a client can begin and reset requests without end while it never has more than a few open (CVE-2023-44487). kube-apiserver
//! works on each of them for a while, and ends the connection that they come on when too many have piled up.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k3s_listener::{Budget, Rate};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Requests that a connection may give up: all its streams twice over, for clients that stop, and then ten a second.
const GIVEN_UP: Rate = Rate { burst: 200, interval: Duration::from_millis(100) };

/// What a connection's client may still give up.
#[derive(Debug)]
pub(super) struct Abuse {
    budget: Mutex<Budget>,
    exceeded: CancellationToken,
}

/// A request that has no answer yet. To drop it is to give it up.
#[derive(Debug)]
pub(super) struct Unanswered(Option<Arc<Abuse>>);

impl Abuse {
    /// Nothing has been given up yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { budget: Mutex::new(Budget::new(Instant::now())), exceeded: CancellationToken::new() })
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Unanswered {
        Unanswered(Some(self.clone()))
    }

    /// Returns when the client has given up more than it may: its connection is to end.
    pub(super) async fn exceeded(&self) {
        self.exceeded.cancelled().await;
    }
}

impl Unanswered {
    /// There is an answer.
    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(abuse) = self.0.take() else { return };
        let mut budget = abuse.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if !budget.spend(GIVEN_UP, Instant::now()) {
            abuse.exceeded.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_cost_nothing_and_giving_up_is_for_once_in_a_while() {
        let abuse = Abuse::new();
        for _ in 0..10 * GIVEN_UP.burst {
            abuse.begin().answered();
        }
        for _ in 0..10 * GIVEN_UP.burst {
            drop(abuse.begin());
            tokio::time::advance(GIVEN_UP.interval).await;
        }
        assert!(!abuse.exceeded.is_cancelled());
        for _ in 0..GIVEN_UP.burst {
            drop(abuse.begin());
        }
        assert!(!abuse.exceeded.is_cancelled());
        drop(abuse.begin());
        abuse.exceeded().await;
    }
}
