//! `cargo xtask edge-image`: the disk of an edge machine, of Debian's packages and `target/dist`.
//!
//! ```text
//! k3s_VERSION.disk.raw        the whole disk: ESP with systemd-boot and a kernel, one slot filled, one empty; the data partition is
//!                             made by the machine
//! k3s_VERSION.root.raw        a slot's root: EROFS
//! k3s_VERSION.verity.raw      its dm-verity hashes
//! k3s_VERSION.efi             kernel, initrd and command line in one, with the root hash that it accepts
//! k3s_VERSION.update          the three in one file, signed: what `k3s os update` takes
//! ```
//!
//! `images/edge` says what is on the disk.

mod disk;
mod slot;
mod tools;
mod tree;
mod update_set;

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
pub(crate) use update_set::Key;

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
    /// Secret key of minisign without a password, as `minisign -G -W` makes it: the machine takes updates that are signed with it, and the
    /// update to this version is made. Without it the machine takes none.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the files go; `target/edge` if not given.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Makes the image, and prints its parts' sizes and digests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.output.clone().unwrap_or_else(|| workspace::target().join("edge"));
    let edition = Edition {
        version: args.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION")),
        key: args.key.as_deref().map(Key),
        ..Edition::default()
    };
    Bases::cached(&args.kernel)?.make(&edition, &folder)?;
    for (file, digest) in digest::of_folder(&folder)? {
        let metadata = fs::metadata(folder.join(&file))?;
        let (size, on_disk) = (metadata.len() / 1_000_000, metadata.blocks() * 512 / 1_000_000);
        println!("{digest}  {}  {size} MB, {on_disk} MB of it used", file.display());
    }
    Ok(())
}

/// What is made of `target/dist`.
pub(crate) struct Edition<'a> {
    /// What it is called.
    pub(crate) version: &'a str,
    /// Whose updates it takes.
    pub(crate) key: Option<Key<'a>>,
    /// What lies below `/usr` besides.
    pub(crate) besides: Option<&'a Path>,
}

impl Default for Edition<'_> {
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), key: None, besides: None }
    }
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
    pub(crate) fn make(&self, edition: &Edition<'_>, folder: &Path) -> Result<PathBuf> {
        let Edition { version, key, besides } = *edition;
        let dist = dist::folder();
        ensure!(dist.exists(), "{} is not there: run `cargo xtask dist` first", dist.display());
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("Cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder)?;
        let scratch = Scratch::create(folder, "edge")?;
        let tree = Tree::finish(&self.tree, &dist, version, &scratch.0)?;
        if let Some(besides) = besides {
            tree.add(besides)?;
        }
        if let Some(key) = key {
            tree.add_update_key(&key.public(&self.tools, &scratch.0)?)?;
        }
        let slot = Slot::make(&self.tools, &tree, version, &scratch.0)?;
        let disk = disk::make(&self.tools, &slot, version, &scratch.0)?;
        let set = key.map(|_| update_set::make(&self.tools, &slot, version, &scratch.0)).transpose()?;
        for file in slot.files().into_iter().chain([disk.as_path()]).chain(set.as_deref()) {
            let name = file.file_name().expect("each is a file in the scratch folder");
            fs::rename(file, folder.join(name))?;
        }
        Ok(folder.join(disk.file_name().expect("it is a file")))
    }

    /// Makes a key for tests in `folder`.
    pub(crate) fn make_key(&self, folder: &Path) -> Result<PathBuf> {
        Key::make(&self.tools, folder)
    }
}
