//! What happens again and again, and is told once.

use std::time::Duration;

use tokio::time::Instant;

/// Between two lines of the log on the same.
const INTERVAL: Duration = Duration::from_secs(60);

/// How often something has happened that the log tells once, and after that as a number: once a minute, if it goes on.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    told: Option<Instant>,
    untold: u64,
}

impl Repeated {
    /// It has happened once more. If it is to be told: how often it has since it was.
    pub(crate) fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + INTERVAL) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_is_told_and_then_a_number_a_minute() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        let told = Vec::from_iter((0..6319 * 2).filter_map(|n| repeated.count(start + n * INTERVAL / 6319)));
        assert_eq!(told, [1, 6319]);
        assert_eq!(repeated.count(start + 10 * INTERVAL), Some(6319));
        assert_eq!(repeated.count(start + 20 * INTERVAL), Some(1));
    }
}
