//! How long to wait before the API is asked again, and what its refusals mean.

use std::time::Duration;

use k3s_supervise::Backoff;
use kube::runtime::utils;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A watch that failed so long after the failure before has stood in between: more than the longest pause and a try take.
const STOOD: Duration = Duration::from_secs(60);

/// Of requests to the API. It begins short, as most of the waiting is for a kube-apiserver of our own that is just starting.
pub(crate) fn of_api() -> Backoff {
    Backoff::between(FIRST, LONGEST)
}

/// The same of a watch, as kube-rs asks for it.
#[derive(Debug)]
pub(crate) struct WatchBackoff {
    backoff: Backoff,
    /// When the watch failed last.
    failed: Option<Instant>,
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self { backoff: of_api(), failed: None }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    /// A failure: if the one before is long ago, the watch has stood meanwhile.
    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.failed.replace(now).is_some_and(|before| now - before > STOOD) {
            self.backoff.begin_anew();
        }
        Some(self.backoff.advance())
    }
}

impl utils::Backoff for WatchBackoff {
    /// Nothing: a watch tells its beginning before it knows whether the API lets it, so an event is no success.
    fn reset(&mut self) {}
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

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_only_begins_again_and_again_waits_longer_each_time() {
        let mut backoff = WatchBackoff::default();
        let mut fail = || {
            // What the beginning of each try does.
            utils::Backoff::reset(&mut backoff);
            backoff.next().unwrap()
        };
        for _ in 0..20 {
            tokio::time::advance(fail()).await;
        }
        assert!(fail() >= LONGEST);
        tokio::time::advance(STOOD * 2).await;
        assert!(fail() <= 2 * FIRST, "it has stood meanwhile");
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
