//! How long to wait before trying again.

use std::time::Duration;

use kube::runtime::{utils, watcher};
use tracing::{debug, warn};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubling waits.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    longest: Duration,
}

/// They begin short, as most of the waiting is for a kube-apiserver of our own that is just starting.
impl Default for Backoff {
    fn default() -> Self {
        Self::between(FIRST, LONGEST)
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.advance())
    }
}

impl utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.begin_anew();
    }
}

impl Backoff {
    /// Waits of at first and at most so long.
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { first, next: first, longest }
    }

    /// How long to wait now; longer the next time.
    pub fn advance(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }

    /// Waits as long as it is time for.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.advance()).await;
    }

    /// After a success.
    pub fn begin_anew(&mut self) {
        self.next = self.first;
    }
}

/// What a failed request means for whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The API is not there or not ready: the same request is right later.
    Passing,
    /// The object changed or went since it was read: its next event tells.
    Outdated,
    /// The API understood and refused.
    Refused,
}

impl Failure {
    pub(crate) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 | 409 => Self::Outdated,
                429 | 500.. => Self::Passing,
                _ => Self::Refused,
            },
            _ => Self::Passing,
        }
    }
}

/// Tells of a watch that broke. That the API does not answer is the supervisor's to tell; that it refuses is ours.
pub(crate) fn log_broken_watch(of: &'static str, error: &watcher::Error) {
    let refused = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Failure::of(error) == Failure::Refused,
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => false,
    };
    if refused {
        warn!(%error, of, "The API refuses a watch; trying again.");
    } else {
        debug!(%error, of, "A watch broke; starting it again.");
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let waits: Vec<_> = Backoff::default().take(9).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
    }

    #[test]
    fn failures_are_told_apart() {
        let of = |code| Failure::of(&kube::Error::Api(Box::new(Status::failure("", "").with_code(code))));
        assert_eq!(of(409), Failure::Outdated);
        assert_eq!(of(503), Failure::Passing);
        assert_eq!(of(403), Failure::Refused);
        assert_eq!(Failure::of(&kube::Error::LinesCodecMaxLineLengthExceeded), Failure::Passing);
    }
}
