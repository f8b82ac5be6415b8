//! `cargo xtask images`: packs the container images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::{Image, Purpose};
use crate::{
    dist::{self, Content},
    workspace,
};

#[derive(clap::Args)]
pub(crate) struct Args {}

/// Packs all images but Traefik's, those of the product into `target/dist`.
pub(crate) fn run(_: &Args) -> Result<()> {
    pack(&dist::folder().join("share/k3s/images"), Some(&test_folder()), Content::Usual)
}

/// Where the images for tests and demonstrations are packed.
pub(crate) fn test_folder() -> PathBuf {
    workspace::target().join("dist-test/images")
}

/// Packs those of the product and, if they have a place, those of tests. Prints one line an image: name and digest.
pub(crate) fn pack(product: &Path, test: Option<&Path>, content: Content) -> Result<()> {
    for image in Image::all()? {
        if content == Content::Usual && image.is_optional()? {
            continue;
        }
        let folder = match image.purpose() {
            Purpose::Node => Some(product),
            Purpose::Test => test,
            Purpose::Product => None,
        };
        let Some(folder) = folder else { continue };
        let packed =
            image.pack(&dist::folder(), folder).with_context(|| format!("Cannot pack the image {}", image.name()))?;
        println!("{:<34} {}", packed.name, packed.digest);
    }
    Ok(())
}
