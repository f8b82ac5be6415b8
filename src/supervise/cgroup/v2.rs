//! Leaves in the unified hierarchy.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{CgroupError, Hierarchy, make, open_procs, set};
use crate::program::Resources;

/// The leaf that we live in ourselves; systemd's `DelegateSubgroup=` puts us there from the start.
const OURS: &str = "supervisor";

/// The folder of leaves and what may be set in them.
#[derive(Debug)]
pub(crate) struct Tree {
    base: PathBuf,
    cpu: bool,
    memory: bool,
}

impl Tree {
    pub(super) fn open(unified: &Hierarchy, pid: u32, parent: Option<&Path>) -> Result<Self, CgroupError> {
        let own = &unified.own;
        let base = if let Some(parent) = parent {
            unified.mount.join(parent)
        } else if own.file_name().is_some_and(|name| name == OURS) {
            own.parent().unwrap_or(own).to_owned()
        } else if own.join("cgroup.events").exists() {
            move_into_leaf(own, pid)?;
            own.clone()
        } else {
            // Only the root has no events, and only it may have processes beside children.
            own.join("k3s")
        };
        make(&base)?;
        let (cpu, memory) = (enable(&base, "cpu")?, enable(&base, "memory")?);
        Ok(Self { base, cpu, memory })
    }

    pub(super) fn leaf(&self, name: &str, resources: Resources) -> io::Result<File> {
        let dir = self.base.join(name);
        fs::create_dir_all(&dir)?;
        if self.cpu {
            set(&dir.join("cpu.weight"), &resources.cpu_weight.to_string())?;
        }
        if self.memory {
            set(&dir.join("memory.low"), &resources.memory_low.to_string())?;
        }
        open_procs(&dir)
    }

    pub(super) fn leaf_dirs(&self, name: &str) -> Vec<PathBuf> {
        vec![self.base.join(name)]
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base.display())
    }
}

/// Moves us, and the init that holds us as PID 1 of a container, out of the way. Anybody else in our cgroup means that it was not
/// delegated to us: a login session, for one.
fn move_into_leaf(own: &Path, pid: u32) -> Result<(), CgroupError> {
    let procs = read(&own.join("cgroup.procs"))?;
    let (ours, others): (Vec<_>, Vec<_>) =
        procs.lines().partition(|line| *line == "1" || line.parse::<u32>().is_ok_and(|other| other == pid));
    if !others.is_empty() {
        return Err(CgroupError::Unsuitable(format!(
            "{} also holds other processes ({}): run as a systemd unit with Delegate=yes",
            own.display(),
            others.join(", ")
        )));
    }
    let leaf = own.join(OURS);
    make(&leaf)?;
    let procs = leaf.join("cgroup.procs");
    ours.iter().try_for_each(|pid| set(&procs, pid)).map_err(|source| CgroupError::Io { path: procs, source })
}

/// Lets children of `base` have `controller`, if `base` has it itself.
fn enable(base: &Path, controller: &str) -> Result<bool, CgroupError> {
    if !read(&base.join("cgroup.controllers"))?.split_whitespace().any(|own| own == controller) {
        return Ok(false);
    }
    let control = base.join("cgroup.subtree_control");
    set(&control, &format!("+{controller}")).map_err(|source| CgroupError::Io { path: control, source })?;
    Ok(true)
}

fn read(file: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(file).map_err(|source| CgroupError::Io { path: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would put into a new cgroup.
    fn kernel_makes(dir: &Path, controllers: &str, procs: &str) {
        fs::create_dir_all(dir).unwrap();
        for (file, content) in [
            ("cgroup.controllers", controllers),
            ("cgroup.procs", procs),
            ("cgroup.events", ""),
            ("cgroup.subtree_control", ""),
            ("cpu.weight", "100"),
            ("memory.low", "0"),
        ] {
            fs::write(dir.join(file), content).unwrap();
        }
    }

    fn unit(root: &Path, own: &str) -> Hierarchy {
        Hierarchy { controllers: Vec::new(), mount: root.to_owned(), own: root.join(own) }
    }

    fn content(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn in_a_delegated_unit_we_move_aside_and_children_get_leaves() {
        let root = tempfile::tempdir().unwrap();
        let unit = unit(root.path(), "k3s.service");
        kernel_makes(&unit.own, "cpuset cpu io memory pids\n", "42\n");
        kernel_makes(&unit.own.join("supervisor"), "", "");
        kernel_makes(&unit.own.join("kubelet"), "", "");
        let tree = Tree::open(&unit, 42, None).unwrap();
        assert_eq!(content(unit.own.join("supervisor/cgroup.procs")), "42");
        // Each write is one command to the kernel; a plain file keeps the last.
        assert_eq!(content(unit.own.join("cgroup.subtree_control")), "+memory");
        let mut procs = tree.leaf("kubelet", Resources { cpu_weight: 200, memory_low: 1 << 20 }).unwrap();
        io::Write::write_all(&mut procs, b"0").unwrap();
        assert_eq!(content(unit.own.join("kubelet/cpu.weight")), "200");
        assert_eq!(content(unit.own.join("kubelet/memory.low")), "1048576");
        assert_eq!(content(unit.own.join("kubelet/cgroup.procs")), "0");
    }

    #[test]
    fn where_systemd_has_moved_us_nothing_is_moved() {
        let root = tempfile::tempdir().unwrap();
        let own = unit(root.path(), "k3s.service/supervisor");
        kernel_makes(&root.path().join("k3s.service"), "cpu\n", "");
        kernel_makes(&own.own, "", "42\n");
        let tree = Tree::open(&own, 42, None).unwrap();
        assert_eq!(tree.to_string(), root.path().join("k3s.service").display().to_string());
        assert_eq!(content(own.own.join("cgroup.procs")), "42\n");
        assert!(tree.cpu && !tree.memory);
    }

    #[test]
    fn a_cgroup_shared_with_others_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let session = unit(root.path(), "session-1.scope");
        kernel_makes(&session.own, "cpu memory\n", "7\n42\n");
        let error = Tree::open(&session, 42, None).unwrap_err().to_string();
        assert!(error.ends_with("also holds other processes (7): run as a systemd unit with Delegate=yes"), "{error}");
        assert!(!session.own.join("supervisor").exists());
    }

    #[test]
    fn a_container_moves_its_init_too() {
        let root = tempfile::tempdir().unwrap();
        let container = unit(root.path(), "");
        kernel_makes(root.path(), "cpu\n", "1\n42\n");
        kernel_makes(&root.path().join("supervisor"), "", "");
        assert!(Tree::open(&container, 42, None).is_ok());
    }
}
