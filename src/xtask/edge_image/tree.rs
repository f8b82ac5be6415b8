//! What the root of a machine holds: Debian's packages as `images/edge` changes them, and the package.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use k3s_os::{UpdateKey, Version};

use crate::{component::Scratch, debian, digest, folder, process::succeed, workspace};

/// What the system calls itself; versions of it replace each other.
pub(super) const NAME: &str = "k3s";
/// Package managers, what they run, and what made the initrd. A shell and coreutils stay: units and libraries of Debian's name them.
const TAKEN_OUT: [&str; 26] = [
    "etc/apt",
    "etc/dpkg",
    "etc/dracut.conf.d",
    "etc/initramfs-tools",
    "initrd.img",
    "initrd.img.old",
    "usr/bin/apt",
    "usr/bin/apt-cache",
    "usr/bin/apt-cdrom",
    "usr/bin/apt-config",
    "usr/bin/apt-get",
    "usr/bin/apt-mark",
    "usr/bin/dpkg",
    "usr/bin/dpkg-deb",
    "usr/bin/dracut",
    "usr/bin/perl",
    "usr/bin/perl5.40.1",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/lib/dracut",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/share/bash-completion",
    "usr/share/dpkg",
    "usr/share/initramfs-tools",
    "vmlinuz",
    "vmlinuz.old",
];
/// Runs the script `$0` on the tree `$1`; the mounts go with the namespace.
const CUSTOMIZE: &str = r#"mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
exec sh "$0" "$1""#;
/// Empty in an image: places of mounts, the first of the data partition's.
const EMPTIED: [&str; 4] = ["var", "boot", "run", "tmp"];

/// A finished tree, with `linux` and `initrd` beside it in the folder of work.
pub(super) struct Tree {
    path: PathBuf,
    /// Its name there.
    pub(super) name: &'static str,
    /// The release of its kernel.
    pub(super) kernel: String,
}

/// The tree without the package, with `linux` and `initrd` in its `/boot`: from the cache, or made.
pub(super) fn base(cache: &Path, kernel: &str) -> Result<PathBuf> {
    let packages = packages(kernel)?;
    let debian = debian::Tree { packages: &packages, customize: None };
    let mut inputs = debian.inputs()?;
    let images = workspace::root().join("images");
    for part in ["edge", "systemd", "extension/usr"] {
        for (file, digest) in digest::of_folder(&images.join(part))? {
            inputs.part(&file.to_string_lossy(), digest.as_bytes());
        }
    }
    let made = cache.join(format!("tree-{}", &inputs.hex()[..16]));
    if !made.exists() {
        let packages = debian.cached(cache, "packages")?;
        let scratch = Scratch::create(cache, "tree")?;
        customize(&packages, &scratch.0.join("tree"))?;
        fs::rename(scratch.0.join("tree"), &made)?;
    }
    Ok(made)
}

/// The same, of packages that are unpacked anew, in the folder `to`.
pub(super) fn base_anew(kernel: &str, to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to)?;
    let packages = packages(kernel)?;
    debian::Tree { packages: &packages, customize: None }.make(&to.join("packages"))?;
    let tree = to.join("tree");
    customize(&to.join("packages"), &tree)?;
    Ok(tree)
}

fn packages(kernel: &str) -> Result<String> {
    let file = workspace::root().join("images/edge/debian/packages");
    let packages = fs::read_to_string(&file).with_context(|| format!("Cannot read {}", file.display()))?;
    Ok(format!("{packages}{kernel}\n"))
}

fn customize(packages: &Path, tree: &Path) -> Result<()> {
    println!("Making the tree of edge images.");
    succeed(Command::new("cp").arg("-a").arg(packages).arg(tree))?;
    let mut command = Command::new("unshare");
    command.env("SOURCE_DATE_EPOCH", debian::EPOCH.to_string());
    command.args(["--mount", "--propagation", "private", "sh", "-euc", CUSTOMIZE]);
    succeed(command.arg(workspace::root().join("images/edge/debian/customize.sh")).arg(tree))
}

impl Tree {
    /// A copy of `base` with the package and the version, in the folder of work.
    pub(super) fn finish(base: &Path, dist: &Path, version: &str, work: &Path) -> Result<Self> {
        version.parse::<Version>()?;
        let name = "tree";
        let tree = work.join(name);
        succeed(Command::new("cp").arg("-a").arg(base).arg(&tree))?;
        folder::copy(dist, &tree.join("usr"))?;
        // Debugging symbols are half of a binary that is not optimised.
        succeed(Command::new("strip").arg(tree.join("usr/bin/k3s")))?;
        for file in ["linux", "initrd"] {
            fs::rename(tree.join("boot").join(file), work.join(file))?;
        }
        write_package_list(&tree)?;
        for path in TAKEN_OUT {
            remove(&tree.join(path))?;
        }
        for folder in EMPTIED {
            for entry in fs::read_dir(tree.join(folder))? {
                remove(&entry?.path())?;
            }
        }
        let release = tree.join("usr/lib/os-release");
        let mut text = fs::read_to_string(&release)?;
        writeln!(text, "IMAGE_ID={NAME}\nIMAGE_VERSION={version}")?;
        fs::write(&release, text)?;
        let kernel = fs::read_dir(tree.join("usr/lib/modules"))?.next().context("The tree has no kernel modules")??;
        Ok(Self { path: tree, name, kernel: kernel.file_name().to_string_lossy().into_owned() })
    }

    /// Puts what is in `folder` below `/usr`.
    pub(super) fn add(&self, folder: &Path) -> Result<()> {
        folder::copy(folder, &self.path.join("usr"))
    }

    /// Has machines take the updates of this key.
    pub(super) fn add_update_key(&self, public: &Path) -> Result<()> {
        fs::copy(public, self.path.join(&UpdateKey::PATH[1..]))?;
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whoever has to know what is in an image finds each package with its version.
fn write_package_list(tree: &Path) -> Result<()> {
    let status = fs::read_to_string(tree.join("var/lib/dpkg/status"))?;
    let mut list = String::new();
    for line in status.lines() {
        match line.split_once(": ") {
            Some(("Package", name)) => list.push_str(name),
            Some(("Version", version)) => writeln!(list, " {version}")?,
            _ => {}
        }
    }
    let folder = tree.join("usr/share/k3s");
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join("debian-packages"), list)?)
}
