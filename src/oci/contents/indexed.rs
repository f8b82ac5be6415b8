//! The images of an OCI layout.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

use super::{
    Contents,
    error::{ArchiveError, Excess},
    image::{Blob, Image, Source},
    limits::{MAX_DEPTH, MAX_REFERENCES},
};
use crate::{
    Digest, ImageName, InvalidDigest,
    layout::{CONTAINERD_NAME, INDEX_FILE, REF_NAME},
};

/// Goes from `index.json` to all that its images consist of.
pub(super) struct Indexed<'a> {
    contents: &'a Contents,
    /// Descriptors so far.
    references: usize,
}

/// What a media type makes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
    /// A configuration, a layer or an attachment: nothing is below it.
    Content,
}

impl<'a> Indexed<'a> {
    pub(super) fn new(contents: &'a Contents) -> Self {
        Self { contents, references: 0 }
    }

    pub(super) fn images(mut self) -> Result<Vec<Image>, ArchiveError> {
        let index: ImageIndex = self.contents.document(INDEX_FILE, "an OCI index")?;
        let mut images = Vec::new();
        for target in index.manifests() {
            let Some(name) = name(target) else { continue };
            let mut blobs = Vec::new();
            self.walk(target, 0, &mut HashSet::new(), &mut blobs)?;
            let target = Descriptor::new(target.media_type().clone(), target.size(), target.digest().clone());
            images.push(Image { name, target, blobs });
        }
        Ok(images)
    }

    /// Adds what `descriptor` points to, children first.
    fn walk(
        &mut self,
        descriptor: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
        blobs: &mut Vec<Blob>,
    ) -> Result<(), ArchiveError> {
        let digest = digest_of(descriptor).map_err(|_| ArchiveError::Missing(descriptor.digest().to_string()))?;
        if depth > MAX_DEPTH {
            return Err(Excess::Depth.into());
        }
        self.references += 1;
        if self.references > MAX_REFERENCES {
            return Err(Excess::References.into());
        }
        if !seen.insert(digest) {
            return Ok(());
        }
        let (path, entry) = self.contents.by_digest(&digest)?;
        if entry.size != descriptor.size() {
            return Err(ArchiveError::Damaged(path.to_string()));
        }
        let children = self.children(Kind::of(descriptor.media_type()), path, &digest)?;
        for child in &children {
            self.walk(child, depth + 1, seen, blobs)?;
        }
        let children = children.iter().filter_map(|child| digest_of(child).ok()).collect();
        blobs.push(Blob { digest, size: entry.size, children, source: Source::Entry(path.clone()) });
        Ok(())
    }

    fn children(&self, kind: Kind, path: &str, digest: &Digest) -> Result<Vec<Descriptor>, ArchiveError> {
        match kind {
            // Archives of one platform keep the index of all.
            Kind::Index => {
                let index: ImageIndex = self.contents.document(path, "an OCI index")?;
                let is_saved =
                    |child: &&Descriptor| digest_of(child).is_ok_and(|digest| self.contents.by_digest(&digest).is_ok());
                let saved: Vec<_> = index.manifests().iter().filter(is_saved).cloned().collect();
                if saved.is_empty() {
                    return Err(ArchiveError::Missing(format!("every manifest of {digest}")));
                }
                Ok(saved)
            }
            Kind::Manifest => {
                let manifest: ImageManifest = self.contents.document(path, "an OCI manifest")?;
                let layers = manifest.layers().iter().filter(|layer| !is_foreign(layer.media_type()));
                Ok([manifest.config()].into_iter().chain(layers).cloned().collect())
            }
            Kind::Content => Ok(Vec::new()),
        }
    }
}

impl Kind {
    fn of(media_type: &MediaType) -> Self {
        match media_type {
            MediaType::ImageIndex => Self::Index,
            MediaType::ImageManifest => Self::Manifest,
            MediaType::Other(other) => match other.as_str() {
                "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
                "application/vnd.docker.distribution.manifest.v2+json" => Self::Manifest,
                _ => Self::Content,
            },
            _ => Self::Content,
        }
    }
}

/// The digest that a descriptor points to; images are known by SHA-256 alone.
pub(super) fn digest_of(descriptor: &Descriptor) -> Result<Digest, InvalidDigest> {
    descriptor.digest().as_ref().parse()
}

/// Layers that their makers do not allow to be passed on; no archive holds them.
fn is_foreign(media_type: &MediaType) -> bool {
    let media_type = media_type.as_ref();
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

/// The full name by annotation; a bare tag is none.
fn name(target: &Descriptor) -> Option<ImageName> {
    let annotations = target.annotations().as_ref()?;
    let full = annotations.get(CONTAINERD_NAME);
    let name = full.or_else(|| annotations.get(REF_NAME).filter(|name| name.contains(['/', ':'])))?;
    name.parse().ok()
}
