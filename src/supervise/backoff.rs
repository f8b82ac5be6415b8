//! How long to wait before a child or a task is started again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(75))
    .with_max_delay(Duration::from_secs(20))
    .without_max_times()
    .with_jitter();
const HEALTHY: Duration = Duration::from_secs(60);

/// Exponential pauses: from 75 ms, doubled each time up to 20 s, each as much again longer by chance, so that what failed together does
/// not start together. The first one is short, since most failures are single ones.
#[derive(Debug)]
pub(crate) struct Backoff {
    pauses: ExponentialBackoff,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pauses: PAUSES.build() }
    }
}

impl Backoff {
    /// The pause after a run that was healthy for so long; a minute makes earlier failures forgotten.
    pub(crate) fn pause(&mut self, healthy: Duration) -> Duration {
        if healthy >= HEALTHY {
            self.pauses = PAUSES.build();
        }
        self.pauses.next().expect("there is no limit to how often")
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
