//! How much memory there is for us and our children.

use std::{fmt, fs, path::Path};

use super::{Hierarchy, hierarchies};

/// The memory that there is, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvailableMemory {
    /// How much, in bytes.
    pub bytes: u64,
    /// Who bounds it.
    pub bound_by: MemoryBound,
}

/// What bounds memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBound {
    /// The machine has no more.
    Machine,
    /// Our cgroup or one above it may have no more.
    Cgroup,
}

impl AvailableMemory {
    /// What this process may use: all of the machine's, or what its cgroup and those above it allow, as far as they can be seen from here.
    /// `None` where the kernel tells neither.
    pub fn of_process() -> Option<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::from_texts(&read("/proc/meminfo"), &read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
    }

    fn from_texts(meminfo: &str, own: &str, mounts: &str) -> Option<Self> {
        let of = |bound_by| move |bytes| Self { bytes, bound_by };
        let machine = field(meminfo, "MemTotal:").map(|kib| kib * 1024).map(of(MemoryBound::Machine));
        let cgroup = hierarchies(own, mounts).iter().filter_map(limit).min().map(of(MemoryBound::Cgroup));
        // Without a limit v1 names a number that no machine has.
        machine.into_iter().chain(cgroup).min_by_key(|memory| memory.bytes)
    }
}

impl fmt::Display for AvailableMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes >> 20;
        match self.bound_by {
            MemoryBound::Machine => write!(f, "the machine has {mib} MiB"),
            MemoryBound::Cgroup => write!(f, "the cgroup may have {mib} MiB"),
        }
    }
}

/// What the kernel holds our cgroup in the hierarchy to; `None` if it counts no memory there, or sets no limit.
fn limit(hierarchy: &Hierarchy) -> Option<u64> {
    if hierarchy.has("memory") {
        // With those above it, also where these cannot be seen (cgroup-v1/memory.rst).
        let stat = fs::read_to_string(hierarchy.own.join("memory.stat")).ok()?;
        return field(&stat, "hierarchical_memory_limit");
    }
    if !hierarchy.controllers.is_empty() {
        return None;
    }
    // From memory.high on a cgroup is slowed down until it needs less (cgroup-v2.rst).
    let limits_of = |dir: &Path| ["memory.max", "memory.high"].map(|file| fs::read_to_string(dir.join(file)));
    let with_those_above = hierarchy.own.ancestors().take_while(|dir| dir.starts_with(&hierarchy.mount));
    with_those_above.flat_map(limits_of).filter_map(|limit| limit.ok()?.trim().parse().ok()).min()
}

fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        2000000 kB\nMemFree:         1000000 kB\n";

    fn found(files: &[(&str, &str)], own: &str, mount: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mounts = format!("35 31 0:32 / {} rw - {mount}\n", dir.path().display());
        AvailableMemory::from_texts(MEMINFO, own, &mounts).map(|memory| memory.to_string())
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let v2 = |files: &[(&str, &str)]| found(files, "0::/edge/k3s.service\n", "cgroup2 cgroup2 rw").unwrap();
        let own = ("edge/k3s.service/memory.max", "max\n");
        assert_eq!(v2(&[own]), "the machine has 1953 MiB");
        assert_eq!(v2(&[own, ("edge/memory.max", "536870912\n")]), "the cgroup may have 512 MiB");
        let lower = ("edge/k3s.service/memory.high", "402653184\n");
        assert_eq!(v2(&[own, lower, ("edge/memory.max", "536870912\n")]), "the cgroup may have 384 MiB");
        assert_eq!(v2(&[("edge/k3s.service/memory.max", "8589934592\n")]), "the machine has 1953 MiB");
    }

    #[test]
    fn v1_tells_of_limits_above_what_is_mounted() {
        let stat = |limit: &str| format!("cache 0\nhierarchical_memory_limit {limit}\nhierarchical_memsw_limit 1\n");
        let v1 = |limit: &str| {
            found(&[("k3s/memory.stat", &stat(limit))], "4:memory:/k3s\n1:cpu:/\n", "cgroup cgroup rw,memory").unwrap()
        };
        assert_eq!(v1("536870912"), "the cgroup may have 512 MiB");
        assert_eq!(v1("9223372036854771712"), "the machine has 1953 MiB");
    }

    #[test]
    fn where_nothing_is_told_nothing_is_known() {
        assert_eq!(AvailableMemory::from_texts("", "", ""), None);
        assert!(AvailableMemory::of_process().is_some_and(|memory| memory.bytes > 0));
    }
}
