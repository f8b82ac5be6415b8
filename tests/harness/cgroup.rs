//! A node's own root in every cgroup hierarchy of the machine.
//!
//! On v1 a node's processes live in `/k3stest/<name>` of each hierarchy. On v2 they live in its leaf `init`, so that the node may enable
//! controllers in its root as a booted system does. A cgroup namespace makes that folder the node's `/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Below this folder of each hierarchy lie the roots of all nodes of all test runs.
const PARENT: &str = "k3stest";

/// Whether a hierarchy is of the old kind, one for each controller, or the unified one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount_point: PathBuf,
    pub(crate) version: Version,
    /// What it is mounted with, e.g. `cpu,cpuacct` or `name=systemd`; empty on v2.
    pub(crate) options: String,
}

impl Hierarchy {
    /// The hierarchies mounted in this mount namespace.
    pub(crate) fn mounted() -> Result<Vec<Self>> {
        let path = "/proc/self/mountinfo";
        Ok(Self::parse(&fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?))
    }

    /// Holds a cgroup of this hierarchy to so many bytes, without swap, if it counts memory.
    fn limit_memory(&self, cgroup: &Path, bytes: u64) -> Result<()> {
        // Swap counts on its own in v2, and together with memory in v1, where the kernel may be built without counting it.
        let limits = match self.version {
            Version::V1 => [("memory.limit_in_bytes", bytes), ("memory.memsw.limit_in_bytes", bytes)],
            Version::V2 => [("memory.max", bytes), ("memory.swap.max", 0)],
        };
        for (file, limit) in limits {
            let path = cgroup.join(file);
            if path.exists() {
                fs::write(&path, limit.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn parse(mountinfo: &str) -> Vec<Self> {
        mountinfo.lines().filter_map(Self::parse_line).collect()
    }

    /// `36 35 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu`; see proc_pid_mountinfo(5).
    fn parse_line(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mount_point = PathBuf::from(mount.split(' ').nth(4)?);
        let mut filesystem = filesystem.split(' ');
        let version = match filesystem.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = match version {
            // The rest are controllers or `name=`, which is what mount(2) wants to find the same hierarchy again.
            Version::V1 => {
                let controller = |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children");
                filesystem.nth(1)?.split(',').filter(controller).collect::<Vec<_>>().join(",")
            }
            Version::V2 => String::new(),
        };
        Some(Self { mount_point, version, options })
    }
}

/// A node's cgroup, by its name below the common parent.
pub(crate) struct Cgroup {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

impl Cgroup {
    /// The cgroup `name`, which need not exist yet, in every hierarchy mounted here.
    pub(crate) fn new(name: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), hierarchies: Hierarchy::mounted()? })
    }

    /// Makes its folders and moves the calling process there: into its root, so that a cgroup namespace made next begins at it. All of it
    /// together may have `memory` bytes.
    pub(crate) fn create_and_join(&self, memory: Option<u64>) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let parent = hierarchy.mount_point.join(PARENT);
            let root = parent.join(&self.name);
            if hierarchy.version == Version::V2 {
                enable_controllers(&hierarchy.mount_point);
            }
            create(&parent)?;
            if hierarchy.version == Version::V2 {
                enable_controllers(&parent);
            }
            create(&root)?;
            if let Some(bytes) = memory {
                hierarchy.limit_memory(&root, bytes)?;
            }
            join(&root)?;
        }
        Ok(())
    }

    /// Moves the calling process to where the node's processes belong.
    pub(crate) fn settle(&self) -> Result<()> {
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V2) {
            let root = hierarchy.mount_point.join(PARENT).join(&self.name);
            let leaf = root.join("init");
            create(&leaf)?;
            join(&leaf)?;
            // Only now: a cgroup that has processes itself cannot hand controllers on.
            enable_controllers(&root);
        }
        Ok(())
    }

    /// Moves the calling process, which comes from outside, into an existing node.
    pub(crate) fn join(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let root = hierarchy.mount_point.join(PARENT).join(&self.name);
            join(&match hierarchy.version {
                Version::V1 => root,
                Version::V2 => root.join("init"),
            })?;
        }
        Ok(())
    }

    /// Removes the folders of the node and of all its pods. Its processes must have ended.
    pub(crate) fn remove(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let parent = hierarchy.mount_point.join(PARENT);
            remove(&parent.join(&self.name))?;
            // Other nodes may still be there.
            let _ = fs::remove_dir(&parent);
        }
        Ok(())
    }

    /// Moves the calling process out again, to the root of each hierarchy.
    pub(crate) fn leave(&self) -> Result<()> {
        self.hierarchies.iter().try_for_each(|hierarchy| join(&hierarchy.mount_point))
    }

    /// Names of all nodes' cgroups that begin with `prefix`.
    pub(crate) fn names_with(prefix: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = Hierarchy::mounted()?
            .iter()
            .filter_map(|hierarchy| fs::read_dir(hierarchy.mount_point.join(PARENT)).ok())
            .flat_map(Iterator::flatten)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

fn create(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot create the cgroup {}", folder.display()));
        }
        _ => {}
    }
    // On v1 a cpuset without cpus and memory nodes takes no process; the files are not there on v2.
    ["cpuset.cpus", "cpuset.mems"].iter().try_for_each(|file| inherit(folder, file))
}

fn inherit(folder: &Path, file: &str) -> Result<()> {
    let own = folder.join(file);
    let (Ok(current), Ok(parents)) = (fs::read_to_string(&own), fs::read_to_string(folder.with_file_name(file))) else {
        return Ok(());
    };
    if current.trim().is_empty() {
        fs::write(&own, parents).with_context(|| format!("cannot write {}", own.display()))?;
    }
    Ok(())
}

/// Hands on what can be handed on; what a node lacks in the end is for `k3s` to say.
fn enable_controllers(folder: &Path) {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn join(folder: &Path) -> Result<()> {
    let file = folder.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("cannot join the cgroup {}", folder.display()))
}

fn remove(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", folder.display())),
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path())?;
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove the cgroup {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies_of_a_hybrid_machine() {
        let mountinfo = "\
25 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
32 25 0:28 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
";
        let hierarchy = |mount_point: &str, version, options: &str| Hierarchy {
            mount_point: mount_point.into(),
            version,
            options: options.into(),
        };
        assert_eq!(
            Hierarchy::parse(mountinfo),
            [
                hierarchy("/sys/fs/cgroup/cpu", Version::V1, "cpu,cpuacct"),
                hierarchy("/sys/fs/cgroup/systemd", Version::V1, "name=systemd"),
                hierarchy("/sys/fs/cgroup/unified", Version::V2, ""),
            ]
        );
    }
}
