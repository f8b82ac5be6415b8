//! A clock that stands behind the last time it is known to have shown: a device without a clock of its own, before its time is synchronised.
//!
//! Certificates would not be valid yet, and new ones would end early. So a start waits for the clock, but not for ever: a machine without
//! a network has to run its pods too.
//!
//! ```text
//!            ┌── not behind ──────────────────────────────► go on
//! at a start ┤                ┌── the clock is set ────────► go on
//!            └── behind: wait ┴── PATIENCE is over ── warn ► go on, by the clock as it is
//! ```
//! The last known time is the modification time of a file without content: remembering it writes an inode and no data.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, SystemTime},
};

use k3s_supervise::{GraphError, Supervisor};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// What a clock that runs may be set back by: nobody refuses a certificate for that.
const TOLERANCE: Duration = Duration::from_secs(60);
/// How long a start waits. A network and a time server that are there have answered by then.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often the clock is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// How often the time is remembered: seldom, for the sake of flash.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);

/// The last time that is known to have been.
#[derive(Debug, Clone)]
pub(crate) struct LastKnownTime {
    path: PathBuf,
}

/// What is to be done about a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It may be right.
    Plausible,
    /// It is wrong: wait for somebody to set it.
    Behind,
    /// It is wrong and nobody has set it in all this time.
    Tolerated,
}

impl Verdict {
    fn of(now: SystemTime, last_known: Option<SystemTime>, waited: Duration) -> Self {
        match last_known {
            Some(last) if now + TOLERANCE < last && waited < PATIENCE => Self::Behind,
            Some(last) if now + TOLERANCE < last => Self::Tolerated,
            _ => Self::Plausible,
        }
    }
}

impl LastKnownTime {
    /// Of the machine whose state lies in `data_dir`.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join("clock") }
    }

    /// Waits until the clock is not behind, and says so in the status; `false` if `shutdown` came first.
    ///
    /// # Errors
    /// [`GraphError`] if a program is called `clock`.
    pub(crate) async fn wait(&self, supervisor: &Supervisor, shutdown: &CancellationToken) -> Result<bool, GraphError> {
        let gate = supervisor.gate("clock")?;
        let begun = Instant::now();
        let mut told = false;
        let waiting = async {
            loop {
                // Read anew each time: removing the file is a way to go on.
                let (now, last_known) = (SystemTime::now(), self.read());
                match Verdict::of(now, last_known, begun.elapsed()) {
                    Verdict::Plausible => break,
                    Verdict::Behind => {
                        let behind = last_known.and_then(|last| last.duration_since(now).ok()).unwrap_or_default();
                        let sentence = format!("the clock is {} behind the last known time", shown(behind));
                        if !told {
                            warn!(
                                "Waiting for time synchronisation: {sentence}. Set the clock, or wait {} s.",
                                PATIENCE.as_secs()
                            );
                            told = true;
                        }
                        gate.waiting(format!("time synchronisation: {sentence}"));
                        sleep(LOOK).await;
                    }
                    Verdict::Tolerated => {
                        warn!("Nobody has set the clock: going on by it as it is.");
                        supervisor.warn("clock", "The clock was behind the last known time when k3s started: certificates may be refused. Set it, and restart k3s.");
                        break;
                    }
                }
            }
        };
        let in_time = shutdown.run_until_cancelled(waiting).await.is_some();
        if in_time {
            if told {
                info!("The clock is taken as it is now.");
            }
            self.remember().await;
            gate.open();
        }
        Ok(in_time)
    }

    /// Does `work`, and remembers the time now and then and at its end.
    pub(crate) async fn keep_during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let ended = loop {
            match timeout(REMEMBER, &mut work).await {
                Ok(ended) => break ended,
                Err(_) => self.remember().await,
            }
        };
        self.remember().await;
        ended
    }

    fn read(&self) -> Option<SystemTime> {
        fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok()
    }

    /// What cannot be remembered is no reason to stop: the next start knows less.
    async fn remember(&self) {
        let path = self.path.clone();
        let touch = move || -> io::Result<()> {
            let file = File::options().create(true).append(true).open(&path)?;
            file.set_modified(SystemTime::now())?;
            file.sync_all()
        };
        // Nobody waits for the disk on a thread of the runtime.
        if let Err(error) = spawn_blocking(touch).await.unwrap_or_else(|ended| Err(ended.into())) {
            debug!(%error, path = %self.path.display(), "The time cannot be remembered.");
        }
    }
}

/// In the largest unit that fits.
fn shown(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use k3s_supervise::{Options, cgroup::CgroupPlace, log::Target};

    use super::*;

    const LAST: SystemTime = SystemTime::UNIX_EPOCH;

    /// What would run programs. It leaves the machine's cgroups alone.
    fn supervisor() -> Supervisor {
        Supervisor::new(Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere }).unwrap()
    }

    #[test]
    fn every_verdict() {
        let at = |seconds| LAST + 10 * PATIENCE + Duration::from_secs(seconds);
        let last = Some(at(100));
        let table = [
            ("the first start", at(0), None, Duration::ZERO, Verdict::Plausible),
            ("later", at(200), last, Duration::ZERO, Verdict::Plausible),
            ("set back a little", at(40), last, Duration::ZERO, Verdict::Plausible),
            ("behind", at(39), last, Duration::ZERO, Verdict::Behind),
            ("behind for long", at(0), last, PATIENCE, Verdict::Tolerated),
            ("set at last", at(100), last, PATIENCE, Verdict::Plausible),
        ];
        for (case, now, last_known, waited, expected) in table {
            assert_eq!(Verdict::of(now, last_known, waited), expected, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_behind_is_waited_for_and_told_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let clock = LastKnownTime::new(dir.path());
        let supervisor = supervisor();
        let shutdown = CancellationToken::new();
        let headline = || supervisor.subscribe().borrow().clone();

        // A first start knows no time yet; the second knows that of the first.
        assert!(clock.wait(&supervisor, &shutdown).await.unwrap());
        let future = SystemTime::now() + Duration::from_secs(3 * 86_400);
        File::options().append(true).open(dir.path().join("clock")).unwrap().set_modified(future).unwrap();

        let begun = Instant::now();
        assert!(clock.wait(&supervisor, &shutdown).await.unwrap());
        assert!(begun.elapsed() >= PATIENCE);
        assert_eq!(headline(), "Nothing is started yet.");
        assert!(clock.read().unwrap() < future, "the clock as it is counts from now on");

        File::options().append(true).open(dir.path().join("clock")).unwrap().set_modified(future).unwrap();
        shutdown.cancel();
        assert!(!clock.wait(&supervisor, &shutdown).await.unwrap());
    }

    #[test]
    fn durations_are_told_in_their_largest_unit() {
        for (seconds, text) in [(90, "90 s"), (600, "10 min"), (7200, "2 h"), (3 * 86_400, "3 days")] {
            assert_eq!(shown(Duration::from_secs(seconds)), text);
        }
    }
}
