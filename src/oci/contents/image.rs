//! What an archive holds of an image.

use std::sync::Arc;

use oci_spec::image::Descriptor;

use crate::{Digest, ImageName};

/// An image in an archive.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: ImageName,
    pub(crate) target: Descriptor,
    /// All that it consists of, children first.
    pub(crate) blobs: Vec<Blob>,
}

#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// What it refers to.
    pub(crate) children: Vec<Digest>,
    pub(crate) source: Source,
}

/// Where a blob's content comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The archive's entry of this path.
    Entry(Arc<str>),
    /// Made here: docker's archives have no manifests.
    Made(Vec<u8>),
}
