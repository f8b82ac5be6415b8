//! `cargo xtask vm-test`: tests on whole machines, with a kernel, systemd, journald and cgroup v2 of their own.
//!
//! A machine is QEMU without hardware help, so it is slow, and works anywhere. It boots Debian with the package of `target/dist` on a
//! second disk. `tests/vm/driver` commands it: a Python program whose machines have the verbs of the NixOS test driver, so that the
//! same script runs on NixOS.

mod image;

use std::{
    fs::{self, File},
    path::PathBuf,
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
const PACKAGES: [Package; 5] = [
    ("mmdebstrap", Some("mmdebstrap")),
    ("qemu-system-x86", Some("qemu-system-x86_64")),
    ("qemu-utils", Some("qemu-img")),
    ("e2fsprogs", Some("mke2fs")),
    ("python3", Some("python3")),
];

/// The test that machines need the package as extensions for.
const EXTENSIONS: &str = "extensions.py";

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
    let image = Image::make(&cache, if needs_extensions { Besides::Extensions } else { Besides::Archives })?;
    if args.image {
        println!("{}", image.root.display());
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
        driver.arg(folder().join("driver")).arg("--image").arg(&image.root).arg("--dist").arg(&image.dist);
        succeed(driver.arg("--state").arg(&state).arg(&test)).with_context(|| format!("The test {name} failed"))?;
    }
    Ok(())
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
