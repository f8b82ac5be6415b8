//! How long to wait before trying again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Of a child or a task. The first one is short, since most failures are single ones.
const PAUSES: (Duration, Duration) = (Duration::from_millis(75), Duration::from_secs(20));
const HEALTHY: Duration = Duration::from_secs(60);

/// Exponential pauses: doubled each time up to a limit, each as much again longer by chance, so that what failed together does not try
/// again together.
#[derive(Debug)]
pub struct Backoff {
    pauses: ExponentialBuilder,
    left: ExponentialBackoff,
}

/// That of a child or a task.
impl Default for Backoff {
    fn default() -> Self {
        Self::between(PAUSES.0, PAUSES.1)
    }
}

impl Backoff {
    /// Pauses of at first and at most so long, before chance adds to them.
    pub fn between(first: Duration, longest: Duration) -> Self {
        let pauses =
            ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).without_max_times().with_jitter();
        Self { pauses, left: pauses.build() }
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
        self.left = self.pauses.build();
    }

    /// The pause after a run that was healthy for so long; a minute makes earlier failures forgotten.
    pub(crate) fn pause(&mut self, healthy: Duration) -> Duration {
        if healthy >= HEALTHY {
            self.begin_anew();
        }
        self.advance()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_a_healthy_minute_starts_over() {
        let mut backoff = Backoff::default();
        let within = |pause: Duration, ms: u64| {
            assert!(
                (u128::from(ms)..=u128::from(2 * ms)).contains(&pause.as_millis()),
                "{pause:?} is not about {ms} ms"
            );
        };
        for ms in [75, 150, 300, 600, 1200, 2400, 4800, 9600, 19_200, 20_000, 20_000] {
            within(backoff.pause(Duration::from_secs(59)), ms);
        }
        within(backoff.pause(Duration::from_secs(60)), 75);
    }
}
