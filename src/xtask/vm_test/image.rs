//! The disks that machines boot from: a Debian root, made once and kept in the cache, and the package with archives for tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;

use crate::{component::Scratch, debian::Tree, dist, folder, images, packages, process::succeed, workspace};

/// What lies on the package's disk beside the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Besides {
    /// Archives of images.
    Archives,
    /// The package as system extensions, too: a minute's work, for the test of these.
    Extensions,
}

pub(super) struct Image {
    /// Holds `root.ext4`, `vmlinuz` and `initrd`.
    pub(super) root: PathBuf,
    /// The package's disk.
    pub(super) dist: PathBuf,
}

impl Image {
    /// Makes what the cache does not have; the package's disk is made anew, from `target/dist`.
    pub(super) fn make(cache: &Path, besides: Besides) -> Result<Self> {
        ensure!(geteuid().is_root(), "Disks of virtual machines are made as root: run this as root");
        let root = root(cache)?;
        Ok(Self { root, dist: dist_disk(cache, besides)? })
    }
}

fn root(cache: &Path) -> Result<PathBuf> {
    let recipe = workspace::root().join("tests/vm/image");
    let packages = fs::read_to_string(recipe.join("packages"))?;
    let customize = recipe.join("customize.sh");
    let debian = Tree { packages: &packages, customize: Some(&customize) };
    let inputs = debian.inputs()?;
    let made = cache.join(format!("root-{}", &inputs.hex()[..16]));
    if made.exists() {
        return Ok(made);
    }
    println!("Making a Debian root for virtual machines.");
    let scratch = Scratch::create(cache, "root")?;
    let (tree, out) = (scratch.0.join("tree"), scratch.0.join("out"));
    fs::create_dir(&out)?;
    debian.make(&tree)?;
    take_boot_files(&tree.join("boot"), &out)?;
    make_disk(&tree, "root", "8G", &out.join("root.ext4"))?;
    fs::rename(&out, &made).with_context(|| format!("Cannot rename to {}", made.display()))?;
    Ok(made)
}

/// The kernel and its initrd are given to QEMU: the disk needs neither.
fn take_boot_files(boot: &Path, out: &Path) -> Result<()> {
    for entry in fs::read_dir(boot)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (prefix, file) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
            if name.starts_with(prefix) {
                fs::rename(&path, out.join(file))?;
            }
        }
    }
    for file in ["vmlinuz", "initrd"] {
        ensure!(out.join(file).exists(), "{} holds no {file}", boot.display());
    }
    Ok(())
}

fn dist_disk(cache: &Path, besides: Besides) -> Result<PathBuf> {
    let dist = dist::folder();
    ensure!(dist.exists(), "{} is not there: run `cargo xtask dist` first", dist.display());
    let scratch = Scratch::create(cache, "dist")?;
    let tree = scratch.0.join("tree");
    folder::copy(&dist, &tree)?;
    folder::copy(&images::test_folder(), &tree.join("test/images"))?;
    // Debugging symbols are half of a binary that is not optimised.
    succeed(Command::new("strip").arg(tree.join("bin/k3s")))?;
    if besides == Besides::Extensions {
        packages::pack_extensions(&tree, &scratch.0.join("extensions"))?;
        folder::copy(&scratch.0.join("extensions"), &tree.join("test/extensions"))?;
    }
    let disk = cache.join("dist.ext4");
    make_disk(&tree, "dist", "2G", &disk)?;
    Ok(disk)
}

/// A sparse disk with an ext4 of `tree`, without a partition table.
fn make_disk(tree: &Path, label: &str, size: &str, disk: &Path) -> Result<()> {
    if disk.exists() {
        fs::remove_file(disk)?;
    }
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=0", "-m", "0", "-L", label, "-d"]);
    succeed(mke2fs.arg(tree).arg(disk).arg(size))
}
