//! Leaves in the unified hierarchy, and a cgroup outside of them for what outlives us.
//!
//! ```text
//! /sys/fs/cgroup
//! ├── system.slice/k3s.service      delegated to us
//! │   ├── supervisor                this process
//! │   └── containerd, kubelet, …    children, a leaf each
//! ├── k3s-shims                     shims: nothing below the unit keeps systemd from starting it again
//! └── kubepods.slice                pods: kubelet's
//! ```
//!
//! The kernel has no processes in a cgroup that hands controllers to its children (cgroup-v2.rst, "no internal processes"), and without
//! `DelegateSubgroup=` (systemd 254) a unit's main process starts in just that cgroup. systemd removes the unit's cgroup when nothing
//! is in it, and with it what we set there; hence nothing may stay in it. The root of what we see is where kubelet's cgroupfs driver
//! puts `kubepods` too: systemd leaves alone what it did not make there.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tracing::{debug, warn};

use super::{CgroupError, Hierarchy, make, open_procs, set};
use crate::program::Descendants;

/// The leaf that we live in ourselves; systemd's `DelegateSubgroup=` puts us there from the start.
const OURS: &str = "supervisor";

/// What outlives us is in here.
const SURVIVORS: &str = "k3s-shims";
/// The mount that containerd looks for a `ShimCgroup` in, whatever else is mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// How a process of another PID namespace is listed. Written, it would mean ourselves.
const NOT_SEEN: &str = "0";

/// The folder of leaves and what may be set in them.
#[derive(Debug)]
pub(crate) struct Tree {
    base: PathBuf,
    cpu: bool,
    mount: PathBuf,
    survivors: Option<PathBuf>,
    /// Whether `base` is ours and not somebody else's choice.
    owned: bool,
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
        let cpu = enable(&base, "cpu")?;
        // Kubelet accounts itself and containerd by what their leaves count.
        enable(&base, "memory")?;
        let survivors = if parent.is_some() { &base } else { &unified.mount }.join(SURVIVORS);
        let survivors = match make(&survivors) {
            Ok(()) => Some(survivors),
            Err(error) => {
                warn!(%error, "Shims stay in the unit's cgroup: without DelegateSubgroup= systemd may not be able to start it again.");
                None
            }
        };
        Ok(Self { base, cpu, mount: unified.mount.clone(), survivors, owned: parent.is_none() })
    }

    pub(super) fn leaf(&self, name: &str, cpu_weight: u16) -> io::Result<File> {
        let dir = self.base.join(name);
        fs::create_dir_all(&dir)?;
        if self.cpu {
            set(&dir.join("cpu.weight"), &cpu_weight.to_string())?;
        }
        open_procs(&dir)
    }

    /// Makes the leaf of `name` empty, as far as it can be: its program does not run.
    pub(super) fn clear(&self, name: &str, descendants: Descendants) {
        let leaf = self.base.join(name);
        let done = match (descendants, &self.survivors) {
            (Descendants::End, _) => set(&leaf.join("cgroup.kill"), "1"),
            (Descendants::Outlive, Some(survivors)) => move_all(&leaf, survivors),
            (Descendants::Outlive, None) => Ok(()),
        };
        match done {
            // There is no leaf yet, or a kernel before 5.14 that cannot do this.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => debug!(leaf = %leaf.display(), %error, "What a component left behind stays in its cgroup."),
            Ok(()) => {}
        }
    }

    /// Where containerd may put shims.
    pub(super) fn of_survivors(&self) -> Option<PathBuf> {
        let below = self.survivors.as_ref()?.strip_prefix(&self.mount).ok()?;
        (self.mount == Path::new(MOUNT)).then(|| Path::new("/").join(below))
    }

    /// Removes what is ours outside of the unit, unless something is in it.
    pub(super) fn close(&self) {
        if let (true, Some(survivors)) = (self.owned, &self.survivors) {
            // Where pods run on it is in use, as it should be.
            let _ = fs::remove_dir(survivors);
        }
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

/// Moves every process of `from`, and what those start meanwhile.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    let mut moved = BTreeSet::new();
    loop {
        let procs = fs::read_to_string(from.join("cgroup.procs"))?;
        let new: Vec<_> = procs.lines().filter(|pid| *pid != NOT_SEEN && moved.insert((*pid).to_owned())).collect();
        if new.is_empty() {
            return Ok(());
        }
        for pid in new {
            match set(&to.join("cgroup.procs"), pid) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                other => other?,
            }
        }
    }
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
            ("cgroup.kill", ""),
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
        let mut procs = tree.leaf("kubelet", 200).unwrap();
        io::Write::write_all(&mut procs, b"0").unwrap();
        assert_eq!(content(unit.own.join("kubelet/cpu.weight")), "200");
        assert_eq!(content(unit.own.join("kubelet/cgroup.procs")), "0");
    }

    /// A unit that we moved aside in, with a leaf of each `(name, processes)`.
    fn tree_with(root: &Path, leaves: &[(&str, &str)]) -> (Hierarchy, Tree) {
        let unit = unit(root, "system.slice/k3s.service");
        kernel_makes(&unit.own, "cpu memory\n", "42\n");
        kernel_makes(&unit.own.join("supervisor"), "", "");
        kernel_makes(&root.join("k3s-shims"), "", "");
        for (name, procs) in leaves {
            kernel_makes(&unit.own.join(name), "", procs);
        }
        let tree = Tree::open(&unit, 42, None).unwrap();
        (unit, tree)
    }

    #[test]
    fn shims_have_a_place_outside_of_the_unit() {
        let root = tempfile::tempdir().unwrap();
        let (_, mut tree) = tree_with(root.path(), &[]);
        assert_eq!(tree.of_survivors(), None, "containerd would look for it in /sys/fs/cgroup");
        assert!(root.path().join("k3s-shims").is_dir());
        tree.mount = "/sys/fs/cgroup".into();
        tree.survivors = Some("/sys/fs/cgroup/k3s-shims".into());
        assert_eq!(tree.of_survivors(), Some("/k3s-shims".into()));
    }

    #[test]
    fn a_chosen_parent_holds_shims_too() {
        let root = tempfile::tempdir().unwrap();
        let unit = unit(root.path(), "k3s.service");
        kernel_makes(&root.path().join("node"), "cpu\n", "");
        let tree = Tree::open(&unit, 42, Some(Path::new("node"))).unwrap();
        tree.close();
        assert!(root.path().join("node/k3s-shims").is_dir());
    }

    /// What a version that left shims in the unit, or a user's template for containerd, leaves behind.
    #[test]
    fn shims_left_in_a_leaf_are_moved_out_before_containerd_starts_and_once_it_has_stopped() {
        let root = tempfile::tempdir().unwrap();
        let (unit, tree) = tree_with(root.path(), &[("containerd", "100\n0\n")]);
        tree.clear("containerd", Descendants::Outlive);
        assert_eq!(content(root.path().join("k3s-shims/cgroup.procs")), "100");
        assert_eq!(content(unit.own.join("containerd/cgroup.kill")), "");
    }

    #[test]
    fn what_kube_proxy_leaves_behind_is_killed() {
        let root = tempfile::tempdir().unwrap();
        let (unit, tree) = tree_with(root.path(), &[("kube-proxy", "100\n")]);
        tree.clear("kube-proxy", Descendants::End);
        assert_eq!(content(unit.own.join("kube-proxy/cgroup.kill")), "1");
        assert_eq!(content(root.path().join("k3s-shims/cgroup.procs")), "");
        tree.clear("kube-scheduler", Descendants::End);
        assert!(!unit.own.join("kube-scheduler").exists(), "a leaf that is not there is not made");
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
        assert!(tree.cpu);
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
