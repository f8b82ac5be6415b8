//! How long to wait before trying again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use kube::runtime::utils;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A watch that failed so long after the failure before has stood in between: more than the longest wait and a try take.
const STOOD: Duration = Duration::from_secs(60);

/// Waits that double, each as much again longer by chance, so that what failed together does not try again together.
#[derive(Debug)]
pub struct Backoff {
    waits: ExponentialBuilder,
    left: ExponentialBackoff,
    /// When a watch failed last.
    failed: Option<Instant>,
}

/// They begin short, as most of the waiting is for a kube-apiserver of our own that is just starting.
impl Default for Backoff {
    fn default() -> Self {
        Self::between(FIRST, LONGEST)
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    /// A failure of a watch: if the one before is long ago, the watch has stood meanwhile.
    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.failed.replace(now).is_some_and(|before| now - before > STOOD) {
            self.begin_anew();
        }
        self.left.next()
    }
}

impl utils::Backoff for Backoff {
    /// Nothing: a watch tells its beginning before it knows whether the API lets it, so an event is no success.
    fn reset(&mut self) {}
}

impl Backoff {
    /// Waits of at first and at most so long, before chance adds to them.
    pub fn between(first: Duration, longest: Duration) -> Self {
        let waits =
            ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).without_max_times().with_jitter();
        Self { waits, left: waits.build(), failed: None }
    }

    /// How long to wait now; longer the next time.
    pub fn advance(&mut self) -> Duration {
        self.left.next().expect("there is no limit to how often")
    }

    /// Waits as long as it is time for.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.advance()).await;
    }

    /// After a success.
    pub fn begin_anew(&mut self) {
        self.left = self.waits.build();
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

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_with_as_much_again_by_chance() {
        let mut backoff = Backoff::default();
        for ms in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let wait = backoff.advance().as_millis();
            assert!((ms..=2 * ms).contains(&wait), "{wait} ms instead of about {ms}");
        }
        backoff.begin_anew();
        assert!(backoff.advance() <= 2 * FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_only_begins_again_and_again_waits_longer_each_time() {
        let mut backoff = Backoff::default();
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
