//! Where children are put: a cgroup leaf each, below our own cgroup and nowhere else.
//!
//! v2 needs a cgroup that was delegated to us (a unit with `Delegate=yes`, or a container with a namespace of its own); on v1 the
//! hierarchies of `cpu`, `cpuacct` and `memory` are used, which kubelet wants to find a process in together. Without either,
//! children stay where we are and [`Cgroups`]' description says why. Pods' cgroups are kubelet's business.
//!
//! Processes that outlive us (containerd's shims) have a cgroup on v2 that lies outside of our own, see [`v2`]: systemd starts a unit
//! in the unit's own cgroup, which the kernel refuses as long as anything is left in a leaf below.

mod memory;
mod v1;
mod v2;

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;
use tracing::debug;

use crate::program::Program;

pub use memory::{AvailableMemory, MemoryBound};

/// Where leaves go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CgroupPlace {
    /// Into our own cgroup; on v1 into `k3s` in it.
    #[default]
    Own,
    /// Into this one, a path from the hierarchies' roots. It is made if need be, and stays.
    At(PathBuf),
    /// There are none.
    Nowhere,
}

impl CgroupPlace {
    fn parent(&self) -> Option<&Path> {
        match self {
            Self::At(parent) => Some(parent.strip_prefix("/").unwrap_or(parent)),
            Self::Own | Self::Nowhere => None,
        }
    }
}

/// The cgroups of children.
#[derive(Debug)]
pub(crate) enum Cgroups {
    V2(v2::Tree),
    V1(v1::Tree),
    /// Children stay in our own, for this reason.
    None(String),
}

/// Why there are no leaves.
#[derive(Debug, thiserror::Error)]
enum CgroupError {
    #[error("{0}")]
    Unsuitable(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Cgroups {
    /// Prepares for leaves. On v2 this moves our own process into the leaf `supervisor`, since a cgroup with processes in it may have no
    /// children with controllers ("no internal processes", kernel's cgroup-v2.rst).
    pub(crate) fn open(place: &CgroupPlace) -> Self {
        if *place == CgroupPlace::Nowhere {
            return Self::None("not wanted".into());
        }
        let read =
            |path: &str| fs::read_to_string(path).map_err(|source| CgroupError::Io { path: path.into(), source });
        let opened = read("/proc/self/cgroup").and_then(|own| {
            let mounts = read("/proc/self/mountinfo")?;
            Self::open_as(&own, &mounts, std::process::id(), place.parent())
        });
        opened.unwrap_or_else(|error| Self::None(error.to_string()))
    }

    /// With the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
    fn open_as(own: &str, mounts: &str, pid: u32, parent: Option<&Path>) -> Result<Self, CgroupError> {
        let hierarchies = hierarchies(own, mounts);
        let v1: Vec<_> = hierarchies.iter().filter(|hierarchy| v1::is_wanted(hierarchy)).collect();
        if !v1.is_empty() {
            return v1::Tree::open(&v1, parent).map(Self::V1);
        }
        match hierarchies.iter().find(|hierarchy| hierarchy.controllers.is_empty()) {
            Some(unified) => v2::Tree::open(unified, pid, parent).map(Self::V2),
            None => Err(CgroupError::Unsuitable("no cgroup hierarchy is mounted where we see our own cgroup".into())),
        }
    }

    /// Makes the leaf of `program`, empty of what an earlier process of it left behind, and opens the files to put a process into it with.
    pub(crate) fn leaf(&self, program: &Program) -> io::Result<Vec<File>> {
        match self {
            Self::V2(tree) => {
                tree.clear(&program.name, program.descendants);
                tree.leaf(&program.name, program.cpu_weight).map(|procs| vec![procs])
            }
            Self::V1(tree) => tree.leaf(&program.name, program.cpu_weight),
            Self::None(_) => Ok(Vec::new()),
        }
    }

    /// Removes the leaf of `program`, on v1 unless processes that outlive it are in it.
    pub(crate) async fn remove(&self, program: &Program) {
        let dirs = match self {
            Self::V2(tree) => {
                tree.clear(&program.name, program.descendants);
                tree.leaf_dirs(&program.name)
            }
            Self::V1(tree) => tree.leaf_dirs(&program.name),
            Self::None(_) => return,
        };
        remove(dirs).await;
    }

    /// Where processes that outlive us go, a path from the root of what is mounted at `/sys/fs/cgroup`.
    pub(crate) fn of_survivors(&self) -> Option<PathBuf> {
        match self {
            Self::V2(tree) => tree.of_survivors(),
            Self::V1(_) | Self::None(_) => None,
        }
    }

    /// Removes what [`Cgroups::open`] made, where it is empty.
    pub(crate) async fn close(&self) {
        match self {
            Self::V2(tree) => tree.close(),
            Self::V1(tree) => remove(tree.own_dirs()).await,
            Self::None(_) => {}
        }
    }
}

impl fmt::Display for Cgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V2(tree) => write!(f, "v2: {tree}"),
            Self::V1(tree) => write!(f, "v1: {tree}"),
            Self::None(why) => write!(f, "none: {why}"),
        }
    }
}

/// A mounted hierarchy that we are in.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// What it controls; empty for the unified one.
    controllers: Vec<String>,
    mount: PathBuf,
    /// Our own cgroup, as a folder.
    own: PathBuf,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

/// What `/proc/self/cgroup` names and `/proc/self/mountinfo` shows (cgroups(7), proc_pid_mountinfo(5)).
fn hierarchies(own: &str, mounts: &str) -> Vec<Hierarchy> {
    let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let controllers: Vec<String> =
                controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            // The last mount on a folder hides earlier ones.
            mounts.iter().rev().find_map(|mount| {
                let is_it = if controllers.is_empty() {
                    mount.kind == "cgroup2"
                } else {
                    mount.kind == "cgroup" && controllers.iter().all(|name| mount.options.contains(&name.as_str()))
                };
                let below =
                    Path::new(path).strip_prefix(&mount.root).ok().filter(|_| is_it && !path.contains("/.."))?;
                // Joining an empty path would add a slash.
                let own = if below.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(below) };
                Some(Hierarchy { controllers: controllers.clone(), mount: mount.point.clone(), own })
            })
        })
        .collect()
}

struct Mount<'a> {
    root: PathBuf,
    point: PathBuf,
    kind: &'a str,
    options: Vec<&'a str>,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, super_block) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut super_block = super_block.split(' ');
        let (kind, options) = (super_block.next()?, super_block.nth(1)?);
        Some(Self { root: unescape(root), point: unescape(point), kind, options: options.split(',').collect() })
    }
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(path: &str) -> PathBuf {
    PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(dir).map_err(|source| CgroupError::Io { path: dir.to_owned(), source })
}

/// Writes to a file that the kernel made: one that is not there is not created.
fn set(file: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

fn open_procs(leaf: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(leaf.join("cgroup.procs"))
}

/// Removes cgroups; those with processes or children stay. The kernel lets go of a process a moment after it could be reaped, and v1
/// has no event for that: hence the few attempts.
async fn remove(mut dirs: Vec<PathBuf>) {
    for _ in 0..10 {
        let is_busy =
            |dir: &PathBuf| fs::remove_dir(dir).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy);
        dirs.retain(is_busy);
        if dirs.is_empty() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    debug!(cgroups = ?dirs, "The cgroups stay, since processes that outlive their program are in them.");
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/1 /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified\\040one rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn our_own_cgroup_is_found_in_each_hierarchy() {
        let found = hierarchies("4:memory:/docker/1/k3s\n1:cpu,cpuacct:/\n3:cpuset:/\n0::/user.slice\n", MOUNTS);
        let own: Vec<_> = found.iter().map(|hierarchy| hierarchy.own.to_str().unwrap()).collect();
        assert_eq!(
            own,
            ["/sys/fs/cgroup/memory/k3s", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified one/user.slice"]
        );
        assert!(found[1].has("cpuacct") && !found[1].has("memory"));
    }

    #[test]
    fn a_cgroup_outside_of_what_is_mounted_is_not_ours() {
        assert_eq!(hierarchies("4:memory:/other\n0::/../outside\n", MOUNTS), []);
        let error = Cgroups::open_as("0::/../x", MOUNTS, 1, None).unwrap_err();
        assert_eq!(error.to_string(), "no cgroup hierarchy is mounted where we see our own cgroup");
    }

    #[test]
    fn without_permission_there_are_none_and_the_reason_is_told() {
        let mounts = "41 31 0:38 / /proc/nothing rw - cgroup2 cgroup2 rw\n";
        let error = Cgroups::open_as("0::/unit", mounts, 1, None).unwrap_err();
        assert!(error.to_string().starts_with("/proc/nothing/unit"), "{error}");
    }
}
