//! How long to wait before a child is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(30);
const HEALTHY: Duration = Duration::from_secs(60);

/// Exponential pauses: 100 ms, doubled each time up to 30 s, each a quarter more or less so that children that failed together
/// do not start together. The first one is short, since most failures are single ones.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a run that was ready for `healthy`; a minute makes earlier failures forgotten.
    /// `chance`, from 0 to 1, chooses within the jitter.
    pub(crate) fn pause(&mut self, healthy: Duration, chance: f64) -> Duration {
        if healthy >= HEALTHY {
            self.failures = 0;
        }
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(CAP).mul_f64(0.75 + 0.5 * chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.pause(Duration::ZERO, 0.5).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
    }

    #[test]
    fn a_healthy_minute_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.pause(Duration::from_secs(59), 0.5);
        }
        assert_eq!(backoff.pause(Duration::from_secs(60), 0.5), FIRST);
    }

    #[test]
    fn jitter_is_a_quarter_each_way() {
        assert_eq!(Backoff::default().pause(Duration::ZERO, 0.0), Duration::from_millis(75));
        assert_eq!(Backoff::default().pause(Duration::ZERO, 1.0), Duration::from_millis(125));
    }
}
