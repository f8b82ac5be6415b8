//! Members that learn: what the leader's server does with them. They get their vote once they have caught up; one that stands still for
//! five minutes is removed, since no other can join meanwhile, as in k3s.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long one may stand still.
const STALLED: Duration = Duration::from_secs(300);

/// How far each has come, and since when.
#[derive(Debug, Default)]
pub(super) struct Learners(BTreeMap<u64, Progress>);

#[derive(Debug)]
struct Progress {
    applied: Option<u64>,
    since: Instant,
}

/// What becomes of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The cluster decides whether it has caught up.
    Promote,
    /// It will not.
    Remove,
}

impl Learners {
    /// Judges the learners that there are, each with how much it has applied, where it tells.
    pub(super) fn judge(&mut self, learners: &[(u64, Option<u64>)], now: Instant) -> Vec<(u64, Verdict)> {
        self.0.retain(|id, _| learners.iter().any(|(learner, _)| learner == id));
        let verdict = |&(id, applied): &(u64, Option<u64>)| {
            let progress = self.0.entry(id).or_insert(Progress { applied, since: now });
            if applied > progress.applied {
                *progress = Progress { applied, since: now };
            }
            let stalled = now.duration_since(progress.since) >= STALLED;
            (id, if stalled { Verdict::Remove } else { Verdict::Promote })
        };
        learners.iter().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Promote, Remove};

    #[test]
    fn who_stands_still_for_five_minutes_is_removed() {
        let (mut learners, start) = (Learners::default(), Instant::now());
        let mut judge = |applied, seconds| learners.judge(&[(7, applied)], start + Duration::from_secs(seconds))[0].1;
        assert_eq!(judge(None, 0), Promote);
        assert_eq!(judge(None, 299), Promote);
        assert_eq!(judge(Some(10), 300), Promote, "it has begun");
        assert_eq!(judge(Some(10), 599), Promote);
        assert_eq!(judge(Some(10), 600), Remove);
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let (mut learners, start) = (Learners::default(), Instant::now());
        learners.judge(&[(7, None)], start);
        learners.judge(&[], start + STALLED);
        assert_eq!(learners.judge(&[(7, None)], start + STALLED), [(7, Promote)]);
    }
}
