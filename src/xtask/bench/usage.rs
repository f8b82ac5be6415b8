//! What the processes of a node take, as /proc tells it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Ticks of processor time a second, on every architecture that k3s is built for.
const TICKS: f64 = 100.0;

/// What all processes of pods are called.
const PODS: &str = "pods";

/// What each process has taken so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Processes(BTreeMap<u32, Process>);

#[derive(Debug, Clone, PartialEq)]
struct Process {
    /// The program it was started as; all of a pod's are `pods`.
    name: String,
    usage: Usage,
}

/// What one or several processes have taken, with children that have ended and were waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    /// MiB, of which pages shared with others count in part.
    pub(super) memory: f64,
    /// MiB that no file backs.
    pub(super) anonymous: f64,
    /// Milliseconds since its start.
    pub(super) cpu: f64,
    /// kB since its start that it caused to be written to a disk. What file systems write for themselves is nobody's.
    pub(super) written: f64,
    /// How often one of its threads was given a processor since it started: voluntary and involuntary context switches.
    pub(super) wakeups: f64,
}

impl Processes {
    /// The processes below `proc`, but for process 1, which is the harness'. What ends meanwhile is left out.
    pub(super) fn below(proc: &Path) -> Result<Self> {
        let entries = fs::read_dir(proc).with_context(|| format!("Cannot list {}", proc.display()))?;
        let processes = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != 1)
            .filter_map(|pid: u32| Some((pid, Process::read(&proc.join(pid.to_string()))?)));
        Ok(Self(processes.collect()))
    }

    /// The memory that a program holds, and the work that it has done since `earlier`.
    pub(super) fn of(&self, program: &str, earlier: &Self) -> Result<Usage> {
        self.since(earlier).get(program).copied().with_context(|| format!("{program} has ended"))
    }

    /// Sums by program, and of all: the memory that they hold, and the work that they have done since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> BTreeMap<&str, Usage> {
        let mut sums = BTreeMap::<_, Usage>::new();
        for (pid, Process { name, usage }) in &self.0 {
            let before = earlier.0.get(pid).map(|earlier| earlier.usage).unwrap_or_default();
            let pod = name == PODS || name == "containerd-shim-runc-v2";
            for row in [Some(name.as_str()), (!pod).then_some("= without pods and shims"), Some("= everything")] {
                let Some(row) = row else { continue };
                let sum = sums.entry(row).or_default();
                sum.memory += usage.memory;
                sum.anonymous += usage.anonymous;
                sum.cpu += usage.cpu - before.cpu;
                sum.written += usage.written - before.written;
                sum.wakeups += usage.wakeups - before.wakeups;
            }
        }
        sums
    }
}

impl Process {
    fn read(folder: &Path) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        Some(Self {
            name: if read("cgroup")?.contains("kubepods") { PODS.to_owned() } else { name(&read("cmdline")?)? },
            usage: Usage::read(folder)?,
        })
    }
}

impl Usage {
    /// The same memory, with `times` as much work.
    pub(super) fn scaled(self, times: f64) -> Self {
        let Self { cpu, written, wakeups, .. } = self;
        Self { cpu: cpu * times, written: written * times, wakeups: wakeups * times, ..self }
    }

    /// Of the process whose folder in /proc this is; `None` if it has ended.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let (memory, io) = (read("smaps_rollup")?, read("io")?);
        let kib = |key: &str| Some(field(&memory, key)? / 1024.0);
        Some(Self {
            memory: kib("Pss:")?,
            anonymous: kib("Pss_Anon:")?,
            cpu: ticks(&read("stat")?)? / TICKS * 1000.0,
            written: (field(&io, "write_bytes:")? - field(&io, "cancelled_write_bytes:")?) / 1000.0,
            wakeups: wakeups(&folder.join("task"))?,
        })
    }
}

/// Of the threads that there are; what others did before they ended is lost.
fn wakeups(tasks: &Path) -> Option<f64> {
    let switches = |status: String| {
        Some(field(&status, "voluntary_ctxt_switches:")? + field(&status, "nonvoluntary_ctxt_switches:")?)
    };
    let statuses = fs::read_dir(tasks).ok()?.flatten().map(|task| fs::read_to_string(task.path().join("status")));
    // A thread may end meanwhile.
    Some(statuses.flatten().filter_map(switches).sum())
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
            ("smaps_rollup", "56-7f ---p 00000000 00:00 0 [rollup]\nRss:  90 kB\nPss:  3072 kB\nPss_Anon:  1024 kB\n"),
            ("stat", "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 3 4 1 20 0 9 0 100\n"),
            ("task/7/status", "voluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t1\n"),
            ("task/8/status", "voluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t0\n"),
            ("io", "rchar: 1\nwrite_bytes: 9000\ncancelled_write_bytes: 1000\n"),
        ] {
            let path = proc.join("7").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir(proc.join("8")).unwrap();
        let usage = Usage { memory: 3.0, anonymous: 1.0, cpu: 200.0, written: 8.0, wakeups: 9.0 };
        let expected = Process { name: "containerd".into(), usage };
        assert_eq!(Processes::below(proc).unwrap(), Processes(BTreeMap::from([(7, expected)])));
    }

    #[test]
    fn programs_are_summed_up_and_pods_are_told_apart() {
        let processes = |list: &[(u32, &str, f64)]| {
            let process =
                |name: &str, cpu| Process { name: name.into(), usage: Usage { memory: 2.0, cpu, ..Usage::default() } };
            Processes(list.iter().map(|(pid, name, cpu)| (*pid, process(name, *cpu))).collect())
        };
        let before = processes(&[(2, "k3s", 5.0), (3, PODS, 1.0)]);
        let after = processes(&[(2, "k3s", 9.0), (3, PODS, 2.0), (4, PODS, 3.0)]);
        let sums = after.since(&before);
        let sums = |row| (sums[row].memory, sums[row].cpu);
        assert_eq!(sums("pods"), (4.0, 4.0));
        assert_eq!(sums("k3s"), (2.0, 4.0));
        assert_eq!(sums("= without pods and shims"), (2.0, 4.0));
        assert_eq!(sums("= everything"), (6.0, 8.0));
    }
}
