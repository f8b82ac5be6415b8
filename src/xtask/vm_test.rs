//! `cargo xtask vm-test`: tests on whole machines, with a kernel, systemd, journald and cgroup v2 of their own.
//!
//! A machine is QEMU without hardware help, so it is slow, and works anywhere. It boots Debian with the package of `target/dist` on a
//! second disk, or, by firmware, the edge image that `cargo xtask edge-image` made. `tests/vm/driver` commands it: a Python program whose
//! machines have the verbs of the NixOS test driver, so that the same script runs on NixOS.

mod edge;
mod image;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    nix,
    process::succeed,
    system_packages::{self, Package},
    workspace,
};
use image::{Besides, Image};

/// What making and running machines takes on Debian.
const PACKAGES: [Package; 7] = [
    ("mmdebstrap", Some("mmdebstrap")),
    ("qemu-system-x86", Some("qemu-system-x86_64")),
    ("qemu-utils", Some("qemu-img")),
    ("e2fsprogs", Some("mke2fs")),
    ("python3", Some("python3")),
    // Edge machines: firmware, and files for the ESP.
    ("ovmf", None),
    ("mtools", Some("mcopy")),
];
/// Where Debian's package of the firmware puts it.
const FIRMWARE: &str = "/usr/share/OVMF";

/// The test that machines need the package as extensions for.
const EXTENSIONS: &str = "extensions.py";
/// What tests of the edge image are called.
const EDGE: &str = "edge_";
/// And those that need more versions of it.
const EDGE_UPDATES: [&str; 3] = ["edge_update", "edge_power", "edge_data"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Tests of `tests/vm` or `nix/tests` by name, or files: a script (.py), or what a NixOS test evaluates to (.json); all of `tests/vm`
    /// if none.
    tests: Vec<String>,
    /// Make the disks and run nothing.
    #[arg(long)]
    image: bool,
}

/// Runs the tests one after the other, each on fresh machines; the first that fails ends it.
pub(crate) fn run(args: &Args) -> Result<()> {
    system_packages::ensure_each(&PACKAGES)?;
    let cache = workspace::cache()?.join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("Cannot create {}", cache.display()))?;
    // Two machines of a test are enough for any host.
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("Cannot lock the cache of virtual machines")?;
    let tests = if args.tests.is_empty() { all()? } else { named(&args.tests)? };
    let needs_extensions = tests.iter().any(|test| test.ends_with(EXTENSIONS));
    let (of_edge, others): (Vec<_>, Vec<_>) = tests.iter().partition(|test| is_of_edge(test));
    let edge =
        if of_edge.is_empty() { None } else { Some(edge::make(of_edge.iter().any(|test| takes_updates(test)))?) };
    let besides = if needs_extensions { Besides::Extensions } else { Besides::Archives };
    let image = if others.is_empty() { None } else { Some(Image::make(&cache, besides)?) };
    if args.image {
        image.iter().map(|image| &image.root).chain(&edge).for_each(|made| println!("{}", made.display()));
        return Ok(());
    }
    for test in tests {
        let name = test.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        println!("── {name}");
        let state = workspace::target().join("vm").join(&name);
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        fs::create_dir_all(&state)?;
        let mut driver = Command::new("python3");
        driver.arg(folder().join("driver"));
        if let Some(image) = &image {
            driver.arg("--image").arg(&image.root).arg("--dist").arg(&image.dist);
        }
        if let Some(edge) = &edge {
            driver.arg("--edge").arg(edge).args(["--firmware", FIRMWARE]);
            driver.arg("--updates").arg(edge::updates());
        }
        succeed(driver.arg("--state").arg(&state).arg(&test)).with_context(|| format!("The test {name} failed"))?;
    }
    Ok(())
}

fn takes_updates(test: &Path) -> bool {
    let name = test.file_name().unwrap_or_default().to_string_lossy();
    EDGE_UPDATES.iter().any(|begin| name.starts_with(begin))
}

fn is_of_edge(test: &Path) -> bool {
    test.file_name().is_some_and(|name| name.to_string_lossy().starts_with(EDGE))
}

fn folder() -> PathBuf {
    workspace::root().join("tests/vm")
}

fn all() -> Result<Vec<PathBuf>> {
    let mut tests: Vec<_> = fs::read_dir(folder())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    tests.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    tests.sort();
    Ok(tests)
}

fn named(names: &[String]) -> Result<Vec<PathBuf>> {
    names.iter().map(|name| find(name)).collect()
}

fn find(name: &str) -> Result<PathBuf> {
    if name.contains(['.', '/']) {
        let path = PathBuf::from(name);
        ensure!(path.exists(), "There is no test {name}");
        return Ok(path);
    }
    let script = format!("{name}.py");
    let path = folder().join(&script);
    if path.exists() {
        return Ok(path);
    }
    ensure!(workspace::root().join("nix/tests").join(&script).exists(), "There is no test {name}");
    nix::vm_test(name)
}
