//! Mounts below the node's folders, and pods' network namespaces, whose names are mounts too.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Before, Trace, files};

/// Where network namespaces have their names.
const NAMESPACES: &str = "/run/netns";
/// What containerd's names of them begin with.
const OF_PODS: &str = "cni-";

/// A line of mountinfo (proc_pid_mountinfo(5)), as far as it is of use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountPoint {
    pub(super) path: PathBuf,
    /// The file system's.
    pub(super) kind: String,
    options: String,
}

impl MountPoint {
    /// All, in the order in which they were made.
    pub(super) fn all() -> Result<Vec<Self>> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).with_context(|| format!("Cannot read {path}"))?;
        Ok(text.lines().filter_map(Self::parse).collect())
    }

    pub(super) fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }

    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        Some(Self {
            path: unescaped(mount.split(' ').nth(4)?),
            kind: file_system.next()?.to_owned(),
            options: file_system.nth(1)?.to_owned(),
        })
    }
}

/// Below the node's own folders, the last made first: it may lie on one made before.
pub(super) fn mounts(before: &Before) -> Result<Vec<Trace>> {
    let namespaces = Path::new(NAMESPACES);
    let is_ours = |path: &Path| {
        path.starts_with(&before.home)
            || files::owned().any(|folder| path.starts_with(folder))
            || (path == namespaces && !before.network_namespaces.contains(path))
    };
    let mounted = MountPoint::all()?.into_iter().rev().map(|mount| mount.path);
    Ok(mounted.filter(|path| is_ours(path)).map(Trace::Mount).collect())
}

/// Those of pods.
pub(super) fn network_namespaces(before: &Before) -> Result<Vec<Trace>> {
    let named = named()?.into_iter().filter(|path| !before.network_namespaces.contains(path));
    Ok(named.map(Trace::NetworkNamespace).collect())
}

/// What [`Before`] has to know of them.
pub(super) fn namespaces_present() -> Result<BTreeSet<PathBuf>> {
    let mounted = MountPoint::all()?.into_iter().map(|mount| mount.path).filter(|path| path == Path::new(NAMESPACES));
    Ok(mounted.chain(named()?).collect())
}

fn named() -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(NAMESPACES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("Cannot list {NAMESPACES}")),
    };
    let of_pods = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(OF_PODS));
    Ok(of_pods.map(|entry| entry.path()).collect())
}

/// The kernel writes blanks and backslashes in octal.
fn unescaped(path: &str) -> PathBuf {
    PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_file_system() {
        let line = "32 31 0:29 / /a\\040b rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let mount = MountPoint::parse(line).unwrap();
        assert_eq!((mount.path.as_path(), mount.kind.as_str()), (Path::new("/a b"), "cgroup"));
        assert!(mount.has_option("cpu") && !mount.has_option("cpus"));
    }
}
