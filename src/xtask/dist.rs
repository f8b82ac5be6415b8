//! `cargo xtask dist`: assembles `target/dist`, the tree that packages, the OCI image and the disk image hold:
//!
//! ```text
//! bin/k3s                     the program; kubectl and ctr are links to it
//! libexec/k3s/                the upstream programs
//! libexec/k3s/cni/            the CNI plugins: containerd's bin_dir
//! libexec/k3s/shared-shim/    a link to `k3s`, which small nodes' containerd starts as its shim
//! share/k3s/images/*.tar      the images that a node needs
//! share/k3s/charts/*.tgz      the Helm charts of packaged add-ons, with --traefik
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::component::{Component, Scratch};
use crate::process::{cargo, succeed};
use crate::{charts, folder, images, workspace};

/// Names by which `k3s` is one of its verbs.
const LINKS: [&str; 2] = ["ctr", "kubectl"];
/// One more link to it: see `src/k3s/cli/shim.rs`.
const SHARED_SHIM: &str = "shared-shim/containerd-shim-runc-v2";

/// How much of the product there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// What takes minutes to build: enough for all scenarios but those of Traefik.
    Usual,
    /// As it is released.
    Whole,
}

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Put in Traefik and its charts, as a release has them. It takes 10 minutes to build, once.
    #[arg(long)]
    pub(crate) traefik: bool,
    /// Put in `k3s` as `cargo build` makes it: built in seconds, and slower, for a scenario under development.
    #[arg(long)]
    pub(crate) debug: bool,
    /// Put in this `k3s`, built elsewhere.
    #[arg(long, value_name = "FILE", conflicts_with = "debug")]
    pub(crate) program: Option<PathBuf>,
    /// Make the tree here, without the images for tests.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
}

/// Builds what is missing, then replaces the tree. Images for tests go to `target/dist-test`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(output) = &args.output {
        return assemble(args, output, None);
    }
    let scratch = Scratch::create(&workspace::target(), "dist")?;
    let tree = scratch.0.join("tree");
    assemble(args, &tree, Some(&images::test_folder()))?;
    let dist = folder();
    if dist.exists() {
        fs::rename(&dist, scratch.0.join("previous"))?;
    }
    fs::rename(&tree, &dist).with_context(|| format!("Cannot rename to {}", dist.display()))?;
    println!("{}", dist.display());
    Ok(())
}

fn assemble(args: &Args, tree: &Path, test_images: Option<&Path>) -> Result<()> {
    for component in Component::all()? {
        let Some(place) = component.libexec() else { continue };
        let built = component.build().with_context(|| format!("Cannot build the component {}", component.name()))?;
        folder::copy(&built.folder, &tree.join("libexec/k3s").join(place))?;
        println!("{:<12} {}", component.name(), component.version());
    }
    let content = if args.traefik { Content::Whole } else { Content::Usual };
    images::pack(&tree.join("share/k3s/images"), test_images, content)?;
    if content == Content::Whole {
        charts::pack(&tree.join("share/k3s/charts"))?;
    } else {
        println!("Without Traefik: servers of this tree leave it out. Releases are made with --traefik.");
    }
    let bin = tree.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(program(args)?, bin.join("k3s"))?;
    for link in LINKS {
        symlink("k3s", bin.join(link))?;
    }
    let shim = tree.join("libexec/k3s").join(SHARED_SHIM);
    fs::create_dir_all(shim.parent().context("The shim is in no folder")?)?;
    symlink("../../../bin/k3s", shim)?;
    Ok(())
}

/// `k3s` itself, built unless it was given.
fn program(args: &Args) -> Result<PathBuf> {
    if let Some(given) = &args.program {
        return Ok(given.clone());
    }
    let (profile, folder) = if args.debug { ("dev", "debug") } else { ("release", "release") };
    succeed(cargo().args(["build", "--profile", profile, "--quiet", "--package", "k3s"]))?;
    Ok(workspace::target().join(folder).join("k3s"))
}

/// The tree.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join("dist")
}
