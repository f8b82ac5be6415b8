//! Whether a version that is started for the first time is good: everything that is looked at has to hold for a while, and before a limit.
//!
//! ```text
//!              ┌──────── something does not hold ────────┐
//!              ▼                                         │
//!  start ──▶ waiting ── all hold ──▶ holding ── for `hold` ──▶ Good
//!              └──────── the limit is reached ───┴───────────▶ Failed
//! ```

use std::time::Duration;

/// One start of a new version. Times are those since it began.
#[derive(Debug)]
pub struct Trial {
    hold: Duration,
    limit: Duration,
    held_since: Option<Duration>,
}

/// What one look at the system leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again.
    Open,
    /// This version stays.
    Good,
    /// This version goes, for what did not hold at the last look.
    Failed(String),
}

impl Trial {
    /// Good is what has held for `hold`; what has not begun to before `limit` has failed.
    pub fn new(hold: Duration, limit: Duration) -> Self {
        Self { hold, limit, held_since: None }
    }

    /// Takes a look at `now` into account: either everything holds, or `Err` says in a sentence's part what does not.
    pub fn observe(&mut self, now: Duration, observed: Result<(), String>) -> Verdict {
        match observed {
            Ok(()) => {
                let since = *self.held_since.get_or_insert(now);
                if now.saturating_sub(since) >= self.hold { Verdict::Good } else { Verdict::Open }
            }
            Err(reason) => {
                self.held_since = None;
                if now >= self.limit { Verdict::Failed(reason) } else { Verdict::Open }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn trial() -> Trial {
        Trial::new(60 * SECOND, 900 * SECOND)
    }

    #[test]
    fn what_holds_for_a_while_is_good() {
        let mut trial = trial();
        assert_eq!(trial.observe(10 * SECOND, Err("k3s is starting".into())), Verdict::Open);
        assert_eq!(trial.observe(100 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(159 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(160 * SECOND, Ok(())), Verdict::Good);
    }

    #[test]
    fn what_breaks_off_begins_anew() {
        let mut trial = trial();
        assert_eq!(trial.observe(100 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(150 * SECOND, Err("the node is not ready".into())), Verdict::Open);
        assert_eq!(trial.observe(151 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(170 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(211 * SECOND, Ok(())), Verdict::Good);
    }

    #[test]
    fn what_never_holds_fails_at_the_limit_with_its_reason() {
        let mut trial = trial();
        assert_eq!(trial.observe(899 * SECOND, Err("k3s does not run".into())), Verdict::Open);
        assert_eq!(
            trial.observe(900 * SECOND, Err("k3s does not run".into())),
            Verdict::Failed("k3s does not run".into())
        );
    }

    #[test]
    fn what_holds_at_the_limit_is_given_its_while() {
        let mut trial = trial();
        assert_eq!(trial.observe(890 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(910 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(trial.observe(950 * SECOND, Ok(())), Verdict::Good);
        let mut unsteady = self::trial();
        assert_eq!(unsteady.observe(890 * SECOND, Ok(())), Verdict::Open);
        assert_eq!(unsteady.observe(910 * SECOND, Err("it went".into())), Verdict::Failed("it went".into()));
    }
}
