//! Cgroups of a node and of its pods, and the processes in them: nothing that a node starts gets out of these.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Before, Trace, mounts::MountPoint};

/// The node's own, at the root of each hierarchy that it uses; what `k3s` makes for its components is in it.
const OWN: &str = "k3s-up";
/// What kubelet makes for pods, by either cgroup driver.
const PODS: [&str; 2] = ["kubepods", "kubepods.slice"];
/// The v1 hierarchies in which kubelet wants to find a process at one path.
const CONTROLLERS: [&str; 3] = ["cpu", "cpuacct", "memory"];

/// Makes the node's own cgroups, for its first process to be put into.
pub(crate) fn make_own() -> Result<Vec<PathBuf>> {
    let mounts = MountPoint::all()?;
    let unified = Path::new("/sys/fs/cgroup");
    let hierarchies: Vec<_> = if mounts.iter().any(|mount| mount.kind == "cgroup2" && mount.path == unified) {
        vec![unified]
    } else {
        let is_used =
            |mount: &&MountPoint| mount.kind == "cgroup" && CONTROLLERS.iter().any(|name| mount.has_option(name));
        mounts.iter().filter(is_used).map(|mount| mount.path.as_path()).collect()
    };
    hierarchies
        .into_iter()
        .map(|hierarchy| {
            let path = hierarchy.join(OWN);
            fs::create_dir_all(&path).with_context(|| format!("Cannot make the cgroup {}", path.display()))?;
            Ok(path)
        })
        .collect()
}

/// Every process of the node and its pods.
pub(super) fn processes(_: &Before) -> Result<Vec<Trace>> {
    let mut pids: Vec<i32> = Vec::new();
    for cgroup in all()? {
        // A cgroup may go while it is looked at.
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids.into_iter().filter_map(|pid| Some(Trace::Process { pid, name: name_of(pid)? })).collect())
}

/// Their cgroups, the deepest first.
pub(super) fn cgroups(_: &Before) -> Result<Vec<Trace>> {
    Ok(all()?.into_iter().map(Trace::Cgroup).collect())
}

fn all() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for mount in MountPoint::all()?.iter().filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2")) {
        for name in PODS.into_iter().chain([OWN]) {
            collect(&mount.path.join(name), &mut found);
        }
    }
    Ok(found)
}

fn collect(cgroup: &Path, found: &mut Vec<PathBuf>) {
    let Ok(children) = fs::read_dir(cgroup) else { return };
    for child in children.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&child.path(), found);
    }
    found.push(cgroup.to_owned());
}

/// `None` for what has ended, though its parent may not have asked about it yet (proc_pid_stat(5)).
fn name_of(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    (!rest.starts_with(['Z', 'X'])).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_with_what_is_in_them_first() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("kubepods/besteffort/pod")).unwrap();
        fs::write(root.path().join("kubepods/cgroup.procs"), "").unwrap();
        let mut found = Vec::new();
        collect(&root.path().join("kubepods"), &mut found);
        let expected =
            ["kubepods/besteffort/pod", "kubepods/besteffort", "kubepods"].map(|path| root.path().join(path));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_process_that_runs_has_a_name() {
        assert!(name_of(std::process::id().cast_signed()).is_some());
        assert_eq!(name_of(i32::MAX), None);
    }
}
