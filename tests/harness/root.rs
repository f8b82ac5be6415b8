//! The root file system of a machine: programs of the real one, state of its own.
//!
//! `/` is a tmpfs. `/usr` and its like are the real machine's, read-only. `/etc` is the real one under a layer of the machine's own.
//! `/var`, `/opt`, `/root` and `/etc/rancher` lie on the machine's disk. `/proc`, `/sys`, the cgroup hierarchies, `/run` and `/tmp` are new.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::pivot_root,
};

use crate::{
    cgroup::{Hierarchy, Version},
    machine::Blueprint,
};

/// Folders of programs, which are shared; `/nix` for machines that run NixOS.
const PROGRAMS: [&str; 8] = ["bin", "lib", "lib32", "lib64", "libx32", "nix", "sbin", "usr"];

/// Folders of state, which are the machine's own.
const STATE: [&str; 3] = ["opt", "root", "var"];

/// Makes the mount namespace of the calling process a machine's. To be called in the machine's other namespaces.
pub(crate) fn build(blueprint: &Blueprint) -> Result<()> {
    let hierarchies = Hierarchy::mounted()?;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // Nothing mounted here may reach the real machine.
    remount("/", MsFlags::MS_PRIVATE)?;

    let disk = &blueprint.disk;
    let root = folder(disk.join("mnt"))?;
    attach("tmpfs", &root, "tmpfs", MsFlags::empty(), "mode=755")?;
    programs(&root)?;
    for name in STATE {
        bind(&folder(disk.join(name))?, &folder(root.join(name))?)?;
    }
    etc(disk, &root)?;
    bind(Path::new("/dev"), &folder(root.join("dev"))?)?;
    attach("proc", &folder(root.join("proc"))?, "proc", MsFlags::empty(), "")?;
    attach("sysfs", &folder(root.join("sys"))?, "sysfs", MsFlags::empty(), "")?;
    cgroups(&root, &hierarchies)?;
    for (name, options) in [("run", "mode=755"), ("tmp", "mode=1777")] {
        attach("tmpfs", &folder(root.join(name))?, "tmpfs", MsFlags::MS_NODEV, options)?;
    }
    for name in ["lib", "log", "tmp"] {
        folder(root.join("var").join(name))?;
    }
    if !root.join("var/run").is_symlink() {
        symlink("/run", root.join("var/run")).context("cannot make /var/run")?;
    }
    for (from, to) in &blueprint.shares {
        let inside = folder(root.join(to.strip_prefix("/").unwrap_or(to)))?;
        bind(from, &inside)?;
        read_only(&inside)?;
    }

    let old = folder(root.join("mnt"))?;
    pivot_root(&root, &old).with_context(|| format!("cannot make {} the root", root.display()))?;
    std::env::set_current_dir("/").context("cannot enter the new root")?;
    umount2("/mnt", MntFlags::MNT_DETACH).context("cannot unmount the old root")?;
    // As systemd leaves it; pods with mount propagation need it.
    remount("/", MsFlags::MS_SHARED)
}

fn programs(root: &Path) -> Result<()> {
    for name in PROGRAMS {
        let real = Path::new("/").join(name);
        let inside = root.join(name);
        if let Ok(target) = fs::read_link(&real) {
            symlink(target, &inside).with_context(|| format!("cannot link {}", inside.display()))?;
        } else if real.is_dir() {
            bind(&real, &folder(inside.clone())?)?;
            read_only(&inside)?;
        }
    }
    Ok(())
}

fn etc(disk: &Path, root: &Path) -> Result<()> {
    let inside = folder(root.join("etc"))?;
    let layer = folder(disk.join("etc"))?;
    let work = folder(disk.join("etc.work"))?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", layer.display(), work.display());
    attach("overlay", &inside, "overlay", MsFlags::empty(), &options)?;
    // A cluster of the real machine is not this one's.
    bind(&folder(disk.join("rancher"))?, &folder(inside.join("rancher"))?)
}

fn cgroups(root: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    if hierarchies.iter().all(|hierarchy| hierarchy.mount_point != top) {
        attach("tmpfs", &root.join("sys/fs/cgroup"), "tmpfs", MsFlags::empty(), "mode=755")?;
    }
    for Hierarchy { mount_point, version, options } in hierarchies.iter().filter(|one| one.mount_point.starts_with(top))
    {
        let kind = match version {
            Version::V1 => "cgroup",
            Version::V2 => "cgroup2",
        };
        let inside = folder(root.join(mount_point.strip_prefix("/").unwrap_or(mount_point)))?;
        attach("cgroup", &inside, kind, MsFlags::empty(), options)?;
    }
    Ok(())
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

fn attach(source: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(options))
        .with_context(|| format!("cannot mount {kind} ({options}) on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn read_only(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot make {} read-only", target.display()))
}

fn remount(target: &str, propagation: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, MsFlags::MS_REC | propagation, None::<&str>)
        .with_context(|| format!("cannot change the mount propagation of {target}"))
}
