//! The images that `docker save` wrote, with manifests made for them.

use std::{path::Path, sync::Arc};

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType, RootFs};
use serde::Deserialize;

use super::{
    Contents, Entry,
    compression::Compression,
    entries::normalised,
    error::{ArchiveError, Excess},
    image::{Blob, Image, Source},
    limits::{MAX_DEPTH, MAX_REFERENCES},
};
use crate::{
    Digest, ImageName,
    layout::{SCHEMA_VERSION, json},
};

/// Docker's table of contents.
pub(super) const SAVED_FILE: &str = "manifest.json";

/// One image in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What counts of an image's configuration.
#[derive(Debug, Deserialize)]
struct Configuration {
    rootfs: RootFs,
}

/// The images that docker's table of contents names.
pub(super) fn images(contents: &Contents) -> Result<Vec<Image>, ArchiveError> {
    let table: Vec<Saved> = contents.document(SAVED_FILE, "docker's table of contents")?;
    let mut references = 0;
    let mut images = Vec::new();
    for saved in &table {
        for tag in saved.repo_tags.iter().flatten() {
            references += saved.layers.len() + 2;
            if references > MAX_REFERENCES {
                return Err(Excess::References.into());
            }
            let name =
                tag.parse().map_err(|_| ArchiveError::Document { entry: tag.clone(), expected: "an image name" })?;
            images.push(image(contents, name, saved)?);
        }
    }
    Ok(images)
}

fn image(contents: &Contents, name: ImageName, saved: &Saved) -> Result<Image, ArchiveError> {
    const CONFIGURATION: &str = "an image configuration";
    let not_a_config = || ArchiveError::Document { entry: saved.config.clone(), expected: CONFIGURATION };
    let (config_path, config_entry) = resolve(contents, &saved.config)?;
    let Configuration { rootfs } = contents.document(&config_path, CONFIGURATION).map_err(|_| not_a_config())?;
    let digest = config_entry.digest.ok_or_else(not_a_config)?;
    if rootfs.diff_ids().len() != saved.layers.len() {
        return Err(not_a_config());
    }
    let mut blobs = Vec::new();
    let mut blob = |media_type, digest, size, path| {
        blobs.push(Blob { digest, size, children: Vec::new(), source: Source::Entry(path) });
        Descriptor::new(media_type, size, digest)
    };
    let config = blob(MediaType::ImageConfig, digest, config_entry.size, config_path);
    let mut layers = Vec::new();
    for (layer, diff_id) in saved.layers.iter().zip(rootfs.diff_ids()) {
        let (path, entry) = resolve(contents, layer)?;
        let media_type = match entry.compression {
            Compression::None => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
            Compression::Bzip2 | Compression::Lz4 | Compression::Xz => return Err(ArchiveError::Compression),
        };
        let digest = entry.digest.map_or_else(|| diff_id.parse().map_err(|_| not_a_config()), Ok)?;
        layers.push(blob(media_type, digest, entry.size, path));
    }
    let children = blobs.iter().map(|blob| blob.digest).collect();
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers);
    let text = json(&manifest.build().expect("a manifest has a version, a configuration and layers"));
    let (digest, size) = (Digest::of(&text), text.len() as u64);
    blobs.push(Blob { digest, size, children, source: Source::Made(text) });
    Ok(Image { name, target: Descriptor::new(MediaType::ImageManifest, size, digest), blobs })
}

/// The file at `path`, through links: docker writes a layer that images share once.
fn resolve<'a>(contents: &'a Contents, path: &str) -> Result<(Arc<str>, &'a Entry), ArchiveError> {
    let mut path = normalised(Path::new(path));
    for _ in 0..=MAX_DEPTH {
        if let Some((path, entry)) = contents.entry(&path) {
            return Ok((path.clone(), entry));
        }
        match contents.link(&path) {
            Some(target) => target.clone_into(&mut path),
            None => break,
        }
    }
    Err(ArchiveError::Missing(path))
}
