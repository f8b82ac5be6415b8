//! `cargo xtask edge-image`: the disk of an edge machine, of Debian's packages and `target/dist`.
//!
//! ```text
//! k3s_VERSION.disk.raw        the whole disk: ESP with systemd-boot and a kernel, one slot filled, one empty; the data partition is
//!                             made by the machine
//! k3s_VERSION.root.raw        a slot's root: EROFS
//! k3s_VERSION.verity.raw      its dm-verity hashes
//! k3s_VERSION.efi             kernel, initrd and command line in one, with the root hash that it accepts
//! ```
//!
//! `images/edge` says what is on the disk.

mod disk;
mod slot;
mod tools;
mod tree;

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;

use crate::{
    component::Scratch,
    digest, dist,
    system_packages::{self, Package},
    workspace,
};
use slot::Slot;
use tools::Tools;
use tree::Tree;

/// What making it takes on the host; the rest comes as a tree of tools.
const PACKAGES: [Package; 2] = [("mmdebstrap", Some("mmdebstrap")), ("util-linux", Some("unshare"))];
/// The kernel for virtual machines: small, and without drivers of most hardware.
pub(crate) const KERNEL: &str = "linux-image-cloud-amd64";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Debian's package of the kernel: linux-image-amd64 has drivers for hardware, and is 100 MB larger.
    #[arg(long, value_name = "PACKAGE", default_value = KERNEL)]
    kernel: String,
    /// What the system is called, in the order of which versions replace each other; the program's if not given.
    #[arg(long = "as", value_name = "VERSION")]
    version: Option<String>,
    /// Where the files go; `target/edge` if not given.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Makes the image, and prints its parts' sizes and digests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let disk = make(&args.kernel, args.version.as_deref(), args.output.clone())?;
    let folder = disk.parent().expect("it is in a folder");
    for (file, digest) in digest::of_folder(folder)? {
        let metadata = fs::metadata(folder.join(&file))?;
        let (size, on_disk) = (metadata.len() / 1_000_000, metadata.blocks() * 512 / 1_000_000);
        println!("{digest}  {}  {size} MB, {on_disk} MB of it used", file.display());
    }
    Ok(())
}

/// Makes the files of one version from `target/dist`, in `target/edge` unless told otherwise, and returns the disk.
pub(crate) fn make(kernel: &str, version: Option<&str>, folder: Option<PathBuf>) -> Result<PathBuf> {
    let folder = folder.unwrap_or_else(|| workspace::target().join("edge"));
    Bases::cached(kernel)?.make(&dist::folder(), version.unwrap_or(env!("CARGO_PKG_VERSION")), &folder)
}

/// What images of all versions are made of: Debian's packages, unpacked.
pub(crate) struct Bases {
    tree: PathBuf,
    tools: Tools,
}

impl Bases {
    /// Those in the cache, made if they are not there.
    pub(crate) fn cached(kernel: &str) -> Result<Self> {
        ensure!(geteuid().is_root(), "Trees of Debian's packages are made as root: run this as root");
        system_packages::ensure_each(&PACKAGES)?;
        let cache = workspace::cache()?.join("edge");
        fs::create_dir_all(&cache).with_context(|| format!("Cannot create {}", cache.display()))?;
        let lock = File::create(cache.join("lock"))?;
        lock.lock().context("Cannot lock the cache of edge images")?;
        Ok(Self { tree: tree::base(&cache, kernel)?, tools: Tools::cached(&cache)? })
    }

    /// The same with a tree that is made anew in the folder `to`.
    pub(crate) fn anew(to: &Path) -> Result<Self> {
        let cached = Self::cached(KERNEL)?;
        Ok(Self { tree: tree::base_anew(KERNEL, to)?, ..cached })
    }

    /// Makes the files of one version in `folder`, which holds nothing else afterwards, and returns the disk.
    pub(crate) fn make(&self, dist: &Path, version: &str, folder: &Path) -> Result<PathBuf> {
        ensure!(dist.exists(), "{} is not there: run `cargo xtask dist` first", dist.display());
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("Cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder)?;
        let scratch = Scratch::create(folder, "edge")?;
        let tree = Tree::finish(&self.tree, dist, version, &scratch.0)?;
        let slot = Slot::make(&self.tools, &tree, version, &scratch.0)?;
        let disk = disk::make(&self.tools, &slot, version, &scratch.0)?;
        for file in slot.files().into_iter().chain([disk.as_path()]) {
            let name = file.file_name().expect("each is a file in the scratch folder");
            fs::rename(file, folder.join(name))?;
        }
        Ok(folder.join(disk.file_name().expect("it is a file")))
    }
}
