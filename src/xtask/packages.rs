//! `cargo xtask packages`: the product for machines whose operating system is an image: as a container image and as system
//! extensions, with what is in them.
//!
//! ```text
//! k3s-VERSION-ARCH.oci.tar        k3s server in a privileged container
//! k3s-VERSION-ARCH.sysext.raw     /usr, for systemd-sysext
//! k3s-VERSION-ARCH.confext.raw    /etc, for systemd-confext
//! sbom/*.cdx.json                 what each program is made of
//! ```

mod extension;
mod sbom;
mod sizes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    digest, dist,
    image::{Image, Purpose},
    workspace,
};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Leave out the bills of materials, which need tools that are built first.
    #[arg(long)]
    no_sbom: bool,
    /// Only the container image, which the scenarios run.
    #[arg(long)]
    image: bool,
    /// Where the packages go; `target/packages` if not given.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

impl Args {
    /// For the scenarios.
    pub(crate) fn image_alone() -> Self {
        Self { image: true, ..Self::default() }
    }
}

/// Packs what is in `target/dist`, and prints a digest a file and the table of sizes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.output.clone().unwrap_or_else(|| workspace::target().join("packages"));
    let dist = dist::folder();
    if !dist.join("share/k3s/charts").exists() {
        println!("target/dist is without Traefik: make a release's with `cargo xtask dist --traefik`.");
    }
    let image = pack_image(&dist, &folder)?;
    if args.image {
        println!("{}", image.display());
        return Ok(());
    }
    let extensions = pack_extensions(&dist, &folder)?;
    if !args.no_sbom {
        sbom::write(&dist, &folder.join("sbom"))?;
    }
    for (file, digest) in digest::of_folder(&folder)? {
        println!("{digest}  {}", file.display());
    }
    println!("\n{}", sizes::table(&dist, &image, &extensions)?);
    Ok(())
}

/// The container image of the tree `dist`.
pub(crate) fn pack_image(dist: &Path, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{}.oci.tar", name()));
    for image in Image::all()?.iter().filter(|image| image.purpose() == Purpose::Product) {
        image.pack(dist, folder)?;
        fs::rename(folder.join(format!("{}.tar", image.name())), &path)?;
    }
    Ok(path)
}

/// The extensions of the tree `dist`: for /usr, for /etc.
pub(crate) fn pack_extensions(dist: &Path, folder: &Path) -> Result<[PathBuf; 2]> {
    extension::pack(dist, folder, &name())
}

fn name() -> String {
    format!("k3s-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)
}
