//! Leaves in the hierarchies of cgroup v1, legacy or hybrid.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{CgroupError, Hierarchy, make, open_procs, set};

/// kubelet compares a process' `cpu` and `memory` cgroups and accounts it by `cpuacct`: a child has to be at one path in all of them.
const WANTED: [&str; 3] = ["cpu", "cpuacct", "memory"];

pub(super) fn is_wanted(hierarchy: &Hierarchy) -> bool {
    WANTED.iter().any(|controller| hierarchy.has(controller))
}

/// One folder for leaves in each hierarchy.
#[derive(Debug)]
pub(crate) struct Tree {
    bases: Vec<Base>,
    /// Whether the folders are ours and not somebody else's choice.
    owned: bool,
}

#[derive(Debug)]
struct Base {
    dir: PathBuf,
    has_cpu: bool,
}

impl Tree {
    pub(super) fn open(hierarchies: &[&Hierarchy], parent: Option<&Path>) -> Result<Self, CgroupError> {
        let bases = hierarchies.iter().map(|hierarchy| {
            let dir = match parent {
                Some(parent) => hierarchy.mount.join(parent),
                None => hierarchy.own.join("k3s"),
            };
            make(&dir)?;
            Ok(Base { dir, has_cpu: hierarchy.has("cpu") })
        });
        Ok(Self { bases: bases.collect::<Result<_, CgroupError>>()?, owned: parent.is_none() })
    }

    pub(super) fn leaf(&self, name: &str, cpu_weight: u16) -> io::Result<Vec<File>> {
        let leaf = |base: &Base| {
            let dir = base.dir.join(name);
            fs::create_dir_all(&dir)?;
            if base.has_cpu {
                set(&dir.join("cpu.shares"), &shares(cpu_weight).to_string())?;
            }
            open_procs(&dir)
        };
        self.bases.iter().map(leaf).collect()
    }

    pub(super) fn leaf_dirs(&self, name: &str) -> Vec<PathBuf> {
        self.bases.iter().map(|base| base.dir.join(name)).collect()
    }

    /// The folders of leaves that are nobody else's.
    pub(super) fn own_dirs(&self) -> Vec<PathBuf> {
        if self.owned { self.bases.iter().map(|base| base.dir.clone()).collect() } else { Vec::new() }
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dirs: Vec<_> = self.bases.iter().map(|base| base.dir.display().to_string()).collect();
        f.write_str(&dirs.join(", "))
    }
}

/// `cpu.shares` that relate to v1's neutral 1024 as the weight does to v2's neutral 100.
fn shares(weight: u16) -> u64 {
    (u64::from(weight) * 1024 / 100).clamp(2, 262_144)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(root: &Path, controllers: &[&str], own: &str) -> Hierarchy {
        let mount = root.join(controllers.join(","));
        Hierarchy { controllers: controllers.iter().map(ToString::to_string).collect(), own: mount.join(own), mount }
    }

    /// What the kernel would put into a new cgroup.
    fn kernel_makes(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for file in ["cgroup.procs", "cpu.shares"] {
            File::create(dir.join(file)).unwrap();
        }
    }

    #[test]
    fn a_leaf_in_each_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        let (cpu, memory) =
            (hierarchy(root.path(), &["cpu", "cpuacct"], "unit"), hierarchy(root.path(), &["memory"], "other"));
        let leaf = cpu.own.join("k3s/kubelet");
        kernel_makes(&leaf);
        kernel_makes(&memory.own.join("k3s/kubelet"));
        let tree = Tree::open(&[&cpu, &memory], None).unwrap();
        assert_eq!(tree.leaf("kubelet", 200).unwrap().len(), 2);
        assert_eq!(fs::read_to_string(leaf.join("cpu.shares")).unwrap(), "2048");
        assert_eq!(fs::read_to_string(memory.own.join("k3s/kubelet/cpu.shares")).unwrap(), "");
    }

    #[test]
    fn a_chosen_parent_is_the_same_path_everywhere_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let (cpu, memory) = (hierarchy(root.path(), &["cpu"], "a"), hierarchy(root.path(), &["memory"], "b"));
        let tree = Tree::open(&[&cpu, &memory], Some(Path::new("k3s/node"))).unwrap();
        assert_eq!(tree.to_string(), format!("{0}/cpu/k3s/node, {0}/memory/k3s/node", root.path().display()));
        assert!(tree.own_dirs().is_empty());
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let root = tempfile::tempdir().unwrap();
        let cpu = hierarchy(root.path(), &["cpu"], "unit");
        let tree = Tree::open(&[&cpu], None).unwrap();
        fs::create_dir(cpu.own.join("k3s/kubelet")).unwrap();
        let cgroups = super::super::Cgroups::V1(tree);
        cgroups.close().await;
        assert!(cpu.own.join("k3s/kubelet").exists(), "what is in use stays");
        cgroups.remove(&crate::program::Program::example("kubelet", "true")).await;
        cgroups.close().await;
        assert!(!cpu.own.join("k3s").exists());
    }

    #[test]
    fn weights_become_shares() {
        assert_eq!([shares(1), shares(100), shares(200), shares(10_000)], [10, 1024, 2048, 102_400]);
    }
}
