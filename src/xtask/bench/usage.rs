//! What the processes of a node take, as /proc tells it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Ticks of processor time a second, on every architecture that k3s is built for.
const TICKS: f64 = 100.0;

/// Processes by id.
pub(super) type Processes = BTreeMap<u32, Process>;

/// One process, and its children that have ended and were waited for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Process {
    /// The program it was started as; all of a pod's are `pods`.
    pub(super) name: String,
    /// MiB, of which pages shared with others count in part.
    pub(super) memory: f64,
    /// MiB that no file backs.
    pub(super) anonymous: f64,
    /// Milliseconds since its start.
    pub(super) cpu: f64,
    /// kB since its start that it caused to be written to a disk. What file systems write for themselves is nobody's.
    pub(super) written: f64,
}

/// The processes below `proc`, but for process 1, which is the harness'. What ends meanwhile is left out.
pub(super) fn processes(proc: &Path) -> Result<Processes> {
    let entries = fs::read_dir(proc).with_context(|| format!("Cannot list {}", proc.display()))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != 1)
        .filter_map(|pid: u32| Some((pid, process(&proc.join(pid.to_string()))?)))
        .collect())
}

fn process(folder: &Path) -> Option<Process> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let (memory, io) = (read("smaps_rollup")?, read("io")?);
    let kib = |key: &str| Some(field(&memory, key)? / 1024.0);
    Some(Process {
        name: if read("cgroup")?.contains("kubepods") { "pods".to_owned() } else { name(&read("cmdline")?)? },
        memory: kib("Pss:")?,
        anonymous: kib("Pss_Anon:")?,
        cpu: ticks(&read("stat")?)? / TICKS * 1000.0,
        written: (field(&io, "write_bytes:")? - field(&io, "cancelled_write_bytes:")?) / 1000.0,
    })
}

fn name(cmdline: &str) -> Option<String> {
    let program = cmdline.split('\0').next()?.rsplit('/').next()?;
    (!program.is_empty()).then(|| program.to_owned())
}

fn field(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// The sum of utime, stime, cutime and cstime: see proc_pid_stat(5).
fn ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').skip(11).take(4).map(|ticks| ticks.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        for (file, text) in [
            ("cmdline", "/opt/k3s/libexec/k3s/containerd\0-c\0config.toml\0"),
            ("cgroup", "4:memory:/k3stest/1-0-server\n"),
            (
                "smaps_rollup",
                "5600-7fff ---p 00000000 00:00 0 [rollup]\nRss:  90 kB\nPss:  3072 kB\nPss_Anon:  1024 kB\n",
            ),
            ("stat", "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 3 4 1 20 0 9 0 100\n"),
            ("io", "rchar: 1\nwrite_bytes: 9000\ncancelled_write_bytes: 1000\n"),
        ] {
            fs::create_dir_all(proc.join("7")).unwrap();
            fs::write(proc.join("7").join(file), text).unwrap();
        }
        fs::create_dir(proc.join("8")).unwrap();
        let expected = Process { name: "containerd".into(), memory: 3.0, anonymous: 1.0, cpu: 200.0, written: 8.0 };
        assert_eq!(processes(proc).unwrap(), BTreeMap::from([(7, expected)]));
    }
}
