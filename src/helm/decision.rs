//! What has to be done to a release: pure.
//!
//! ```text
//! none ───────────────────────────────► install
//! deployed ──── made of what is wanted ► nothing
//!     │ superseded ── otherwise ───────► upgrade
//! pending ──────────────────────────────► forget that revision, and decide by the one before
//! uninstalling, uninstalled ───────────► uninstall, install
//! failed, unknown ── reinstall ────────► fetch the chart, uninstall, install
//!                 ── retry ────────────► upgrade
//!                 ── abort ────────────► nothing until somebody mends it
//! ```
//!
//! k3s marks an interrupted revision as failed and upgrades; where that is interrupted in turn, or the chart cannot be fetched just then,
//! its default policy removes what ran. Here an interrupted revision is taken back, and nothing that runs is touched.

use std::time::Duration;

use crate::{
    chart::FailurePolicy,
    release::{Release, Status},
};

/// A pending revision that was written so lately may be one that Helm still works on: that of a leader who is just ending, or a person's.
const FRESH: Duration = Duration::from_secs(15);

/// What has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing: the release is as it is wanted.
    Done,
    /// To look again then.
    Wait(Duration),
    /// To take the last revision back, and to decide anew.
    Forget,
    /// Nothing, until somebody mends the release.
    Blocked,
    /// These, one after the other.
    Act(&'static [Step]),
}

/// Nothing is uninstalled for a chart that cannot be had.
const REINSTALL: &[Step] = &[Step::Fetch, Step::Uninstall, Step::Install];

/// One run of Helm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// To see that the chart is there.
    Fetch,
    Install,
    Upgrade,
    Uninstall,
}

impl Step {
    /// As Helm calls it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "show",
            Self::Install => "install",
            Self::Upgrade => "upgrade",
            Self::Uninstall => "uninstall",
        }
    }
}

/// What has to be done so that the release is made of `hash`; `now` is in seconds of Unix time.
pub(crate) fn decide(release: Option<&Release>, hash: &str, policy: FailurePolicy, now: i64) -> Decision {
    let Some(release) = release else { return Decision::Act(&[Step::Install]) };
    match release.status {
        Status::Deployed if release.hash.as_deref() == Some(hash) => Decision::Done,
        Status::Deployed | Status::Superseded => Decision::Act(&[Step::Upgrade]),
        Status::Pending => still_running(release, now).map_or(Decision::Forget, Decision::Wait),
        Status::Uninstalling | Status::Uninstalled => Decision::Act(&[Step::Uninstall, Step::Install]),
        Status::Failed | Status::Unknown => match policy {
            FailurePolicy::Reinstall => Decision::Act(REINSTALL),
            FailurePolicy::Retry => Decision::Act(&[Step::Upgrade]),
            FailurePolicy::Abort => Decision::Blocked,
        },
    }
}

/// What has to be done so that there is no release.
pub(crate) fn decide_removal(release: Option<&Release>, now: i64) -> Decision {
    match release {
        None => Decision::Done,
        Some(release) if release.status == Status::Pending => {
            still_running(release, now).map_or(Decision::Act(&[Step::Uninstall]), Decision::Wait)
        }
        Some(_) => Decision::Act(&[Step::Uninstall]),
    }
}

/// How long Helm may still be working on it. A clock that is behind the record's proves nothing.
fn still_running(release: &Release, now: i64) -> Option<Duration> {
    let age = Duration::from_secs(u64::try_from(now - release.written).ok()?);
    FRESH.checked_sub(age).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: i64 = 1000;

    fn of(status: Status, policy: FailurePolicy) -> Decision {
        decide(Some(&Release::example(status, "old")), "new", policy, LONG_AGO)
    }

    #[test]
    fn releases_are_installed_upgraded_and_left_alone() {
        let policy = FailurePolicy::default();
        assert_eq!(decide(None, "new", policy, LONG_AGO), Decision::Act(&[Step::Install]));
        assert_eq!(of(Status::Deployed, policy), Decision::Act(&[Step::Upgrade]));
        assert_eq!(of(Status::Superseded, policy), Decision::Act(&[Step::Upgrade]));
        let same = Release::example(Status::Deployed, "new");
        assert_eq!(decide(Some(&same), "new", policy, LONG_AGO), Decision::Done);
        let foreign = Release { hash: None, ..same };
        assert_eq!(decide(Some(&foreign), "new", policy, LONG_AGO), Decision::Act(&[Step::Upgrade]));
    }

    #[test]
    fn a_failure_is_answered_as_the_policy_says() {
        for status in [Status::Failed, Status::Unknown] {
            assert_eq!(of(status, FailurePolicy::Reinstall), Decision::Act(REINSTALL));
            assert_eq!(of(status, FailurePolicy::Retry), Decision::Act(&[Step::Upgrade]));
            assert_eq!(of(status, FailurePolicy::Abort), Decision::Blocked);
        }
    }

    #[test]
    fn what_was_interrupted_is_made_again_whatever_the_policy() {
        for policy in [FailurePolicy::Reinstall, FailurePolicy::Retry, FailurePolicy::Abort] {
            assert_eq!(of(Status::Pending, policy), Decision::Forget);
            for status in [Status::Uninstalling, Status::Uninstalled] {
                assert_eq!(of(status, policy), Decision::Act(&[Step::Uninstall, Step::Install]));
            }
        }
    }

    #[test]
    fn a_revision_that_somebody_may_still_work_on_is_waited_for() {
        let pending = Release { written: 990, ..Release::example(Status::Pending, "old") };
        let after = |now| decide(Some(&pending), "new", FailurePolicy::default(), now);
        assert_eq!(after(992), Decision::Wait(Duration::from_secs(13)));
        assert_eq!(after(1005), Decision::Forget);
        assert_eq!(after(100), Decision::Forget, "a clock that is behind");
    }

    #[test]
    fn a_release_is_uninstalled_in_whatever_state_it_is() {
        assert_eq!(decide_removal(None, LONG_AGO), Decision::Done);
        for status in [Status::Deployed, Status::Failed, Status::Pending, Status::Uninstalling, Status::Unknown] {
            let release = Release::example(status, "");
            assert_eq!(decide_removal(Some(&release), LONG_AGO), Decision::Act(&[Step::Uninstall]), "{status:?}");
        }
        let pending = Release { written: 999, ..Release::example(Status::Pending, "") };
        assert_eq!(decide_removal(Some(&pending), LONG_AGO), Decision::Wait(Duration::from_secs(14)));
    }
}
