//! How fast a disk makes writes durable, and what follows for etcd: its members take a leader whose disk stands still for a dead one.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use k3s_components::EtcdTimeouts;

/// Bytes of a write: what etcd's own documentation measures disks with.
const WRITE: usize = 2300;
/// So many writes are measured, or fewer on a disk that takes longer than [`LONGEST`].
const WRITES: usize = 20;
/// The measurement ends after this.
const LONGEST: Duration = Duration::from_secs(3);

/// k3s' own timeouts: what other members of the cluster go by, and right for every disk that is not slow.
const USUAL: EtcdTimeouts = EtcdTimeouts { heartbeat: Duration::from_millis(500), election: Duration::from_secs(5) };
/// etcd takes none above it.
const LONGEST_ELECTION: Duration = Duration::from_secs(50);
/// A heartbeat that other members' elections, which may be k3s' usual ones, can do with.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(1);
/// So many writes in a row may be slow before another member stands for election.
const SLOW_WRITES: u32 = 20;
/// Above it the user should know: etcd's documentation asks for 10 ms.
const SLOW: Duration = Duration::from_millis(50);

/// How long a disk takes to make a write durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskSpeed {
    /// Nine of ten writes are as fast.
    pub(super) fdatasync: Duration,
}

impl DiskSpeed {
    /// Measures the disk of `dir`. Takes milliseconds on a good one, and some seconds at most on a bad one.
    pub(super) fn measure(dir: &Path) -> io::Result<Self> {
        let path = dir.join("fdatasync");
        let measured = write_and_sync(&path);
        let removed = fs::remove_file(&path);
        let speed = Self::of(measured?);
        removed.map(|()| speed)
    }

    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let fdatasync = times.get((times.len() * 9).div_ceil(10).saturating_sub(1)).copied().unwrap_or_default();
        Self { fdatasync }
    }

    /// How long members may wait for each other.
    pub(super) fn timeouts(self) -> EtcdTimeouts {
        let election = (self.fdatasync * SLOW_WRITES).clamp(USUAL.election, LONGEST_ELECTION);
        EtcdTimeouts { heartbeat: (election / 10).clamp(USUAL.heartbeat, LONGEST_HEARTBEAT), election }
    }

    /// Whether it is slower than etcd wants.
    pub(super) fn is_slow(self) -> bool {
        self.fdatasync > SLOW
    }
}

fn write_and_sync(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let (began, mut times) = (Instant::now(), Vec::new());
    while times.len() < WRITES && (times.is_empty() || began.elapsed() < LONGEST) {
        let write = Instant::now();
        file.write_all(&[0; WRITE])?;
        file.sync_data()?;
        times.push(write.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        DiskSpeed::measure(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(DiskSpeed::measure(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn one_slow_write_of_ten_is_forgiven() {
        let times =
            |slow: usize| (0..20).map(|n| Duration::from_millis(if n < slow { 900 } else { 2 })).collect::<Vec<_>>();
        assert_eq!(DiskSpeed::of(times(2)).fdatasync, Duration::from_millis(2));
        assert_eq!(DiskSpeed::of(times(3)).fdatasync, Duration::from_millis(900));
        assert_eq!(DiskSpeed::of(vec![Duration::from_secs(4)]).fdatasync, Duration::from_secs(4));
    }

    #[test]
    fn timeouts_grow_with_a_slow_disk_alone() {
        for (fdatasync, heartbeat, election) in
            [(1, 500, 5_000), (200, 500, 5_000), (400, 800, 8_000), (1_000, 1_000, 20_000), (7_450, 1_000, 50_000)]
        {
            let timeouts = DiskSpeed { fdatasync: Duration::from_millis(fdatasync) }.timeouts();
            let millis = (timeouts.heartbeat.as_millis(), timeouts.election.as_millis());
            assert_eq!(millis, (heartbeat, election), "{fdatasync}");
        }
    }
}
