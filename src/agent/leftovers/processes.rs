//! The processes of pods: containerd's shims, and whatever they have started.
//!
//! A shim is told by the socket of its containerd. It is the parent of its containers' first processes, and adopts what those lose, so that
//! everything a pod has is below it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

/// Between looks whether killed processes are gone.
const PAUSE: Duration = Duration::from_millis(50);

/// What `/proc` tells of a process.
struct Process {
    parent: i32,
    /// With a NUL behind each argument.
    arguments: Vec<u8>,
}

/// Kills all pods whose containerd is, or was, at `socket`, and waits until they are gone; says how many processes those were.
///
/// # Errors
/// `/proc` cannot be read, a process may not be killed, or one is still there after `patience`.
pub(super) async fn kill_pods(socket: &Path, patience: Duration) -> io::Result<usize> {
    let deadline = Instant::now() + patience;
    let mut killed = BTreeSet::new();
    loop {
        let alive = of_pods(&all()?, socket, &killed);
        if alive.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} are still there", alive.len())));
        }
        for pid in alive {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
            killed.insert(pid);
        }
        sleep(PAUSE).await;
    }
}

/// The shims at `socket`, all below them, and those that were `known` to be and still live: they lose their parent when it is killed.
fn of_pods(processes: &BTreeMap<i32, Process>, socket: &Path, known: &BTreeSet<i32>) -> BTreeSet<i32> {
    let is_shim = |process: &Process| {
        let arguments: Vec<_> = process.arguments.split(|byte| *byte == 0).collect();
        let program = arguments.first().map(|path| Path::new(OsStr::from_bytes(path)));
        program.and_then(Path::file_name).is_some_and(|name| name.as_bytes().starts_with(b"containerd-shim"))
            && arguments.windows(2).any(|pair| pair == [b"-address", socket.as_os_str().as_bytes()])
    };
    let mut found: BTreeSet<i32> = processes
        .iter()
        .filter(|(pid, process)| known.contains(*pid) || is_shim(process))
        .map(|(pid, _)| *pid)
        .collect();
    loop {
        let below = processes.iter().filter(|(_, process)| found.contains(&process.parent)).map(|(pid, _)| *pid);
        let more: Vec<_> = below.filter(|pid| !found.contains(pid)).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Every process that lives.
fn all() -> io::Result<BTreeMap<i32, Process>> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let (Ok(stat), Ok(arguments)) =
            (fs::read_to_string(entry.path().join("stat")), fs::read(entry.path().join("cmdline")))
        else {
            continue;
        };
        if let Some(parent) = parent_of_living(&stat) {
            processes.insert(pid, Process { parent, arguments });
        }
    }
    Ok(processes)
}

/// The fourth field of `/proc/PID/stat`, unless the third says that the process has ended (proc(5)).
fn parent_of_living(stat: &str) -> Option<i32> {
    // The name before it may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/run/k3s/containerd/containerd.sock";

    fn process(parent: i32, arguments: &[&str]) -> Process {
        Process { parent, arguments: arguments.iter().flat_map(|text| [text.as_bytes(), &[0]].concat()).collect() }
    }

    #[test]
    fn pods_are_shims_at_our_socket_and_all_below_them() {
        let shim = |socket| process(1, &["/opt/libexec/containerd-shim-runc-v2", "-id", "a", "-address", socket]);
        let processes = [
            (10, shim(SOCKET)),
            (11, process(10, &["/pause"])),
            (12, process(11, &["sh"])),
            (20, shim("/run/containerd/containerd.sock")),
            (21, process(20, &["/pause"])),
            (30, process(1, &["grep", "-address", SOCKET])),
            // Lost its parent when that was killed.
            (40, process(1, &["sleep"])),
        ]
        .into();
        assert_eq!(of_pods(&processes, Path::new(SOCKET), &BTreeSet::new()), [10, 11, 12].into());
        assert_eq!(of_pods(&processes, Path::new(SOCKET), &[40, 41].into()), [10, 11, 12, 40].into());
    }

    #[test]
    fn who_has_ended_counts_no_more() {
        assert_eq!(parent_of_living("7 (a) b) S 1 7 7 0"), Some(1));
        assert_eq!(parent_of_living("7 (sh) Z 1 7 7 0"), None);
    }
}
