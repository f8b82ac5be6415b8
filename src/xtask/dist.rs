//! `cargo xtask dist`: assembles `target/dist`, the tree that packages, the OCI image and the disk image hold:
//!
//! ```text
//! bin/k3s                     the program; kubectl and ctr are links to it
//! libexec/k3s/                the upstream programs
//! libexec/k3s/cni/            the CNI plugins: containerd's bin_dir
//! share/k3s/images/*.tar      the images that a node needs
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::component::{Component, Scratch};
use crate::process::{cargo, succeed};
use crate::{folder, images, workspace};

/// Names by which `k3s` is one of its verbs.
const LINKS: [&str; 2] = ["ctr", "kubectl"];

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Put in `k3s` as `cargo build` makes it: built in seconds, and slower, for a scenario under development.
    #[arg(long)]
    debug: bool,
}

/// Builds what is missing, then replaces the tree. Images for tests go to `target/dist-test`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let target = workspace::target();
    let scratch = Scratch::create(&target, "dist")?;
    let tree = scratch.0.join("tree");

    for component in Component::all()? {
        let Some(place) = component.libexec() else { continue };
        let built = component.build().with_context(|| format!("Cannot build the component {}", component.name()))?;
        folder::copy(&built.folder, &tree.join("libexec/k3s").join(place))?;
        println!("{:<12} {}", component.name(), component.version());
    }
    images::pack(&tree.join("share/k3s/images"), &images::test_folder())?;
    let (profile, folder_of_profile) = if args.debug { ("dev", "debug") } else { ("release", "release") };
    succeed(cargo().args(["build", "--profile", profile, "--quiet", "--package", "k3s"]))?;
    let bin = tree.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(target.join(folder_of_profile).join("k3s"), bin.join("k3s"))?;
    for link in LINKS {
        symlink("k3s", bin.join(link))?;
    }

    let dist = folder();
    if dist.exists() {
        fs::rename(&dist, scratch.0.join("previous"))?;
    }
    fs::rename(&tree, &dist).with_context(|| format!("Cannot rename to {}", dist.display()))?;
    println!("{}", dist.display());
    Ok(())
}

/// The tree.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join("dist")
}
