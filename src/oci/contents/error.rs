//! Why an archive is refused.

use std::io;

use thiserror::Error;

use super::limits::{MAX_ENTRIES, MAX_HEADER, MAX_KEPT, MAX_REFERENCES};

/// Why an archive is refused.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The file cannot be read, or what it holds is no tar, truncated or damaged.
    #[error("it is not readable as a tar archive: {0}")]
    Read(#[from] io::Error),
    /// The compression is known but not supported.
    #[error("its compression is not supported; compress it with zstd or gzip instead")]
    Compression,
    /// Neither an OCI layout nor saved by docker.
    #[error(
        "it has neither index.json with oci-layout nor manifest.json; write it with `docker save` or as an OCI archive"
    )]
    NoImages,
    /// A document is not what its place or its descriptor says.
    #[error("{entry} is not {expected}")]
    Document {
        /// The path in the archive, or the digest.
        entry: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A blob's content or length is not what its name or its descriptor says.
    #[error("{0} is damaged: its content does not have the digest and length that it is known by")]
    Damaged(String),
    /// Something that an image consists of is not in the archive.
    #[error("{0} is missing in it")]
    Missing(String),
    /// No image in it says what it is called.
    #[error("none of its images has a name; save them by name and tag")]
    Unnamed,
    /// More of something than any archive of images holds.
    #[error("{0}; no archive of images has so many or such large ones: save fewer images into one archive")]
    Excess(Excess),
}

/// What an archive has too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Excess {
    /// A name or a set of attributes.
    #[error("the header of an entry is longer than {} KiB", MAX_HEADER >> 10)]
    Header,
    /// Files, folders and links.
    #[error("it has more than {MAX_ENTRIES} entries")]
    Entries,
    /// Names of entries, and documents.
    #[error("its names and documents are longer than {} MiB", MAX_KEPT >> 20)]
    Kept,
    /// What images consist of.
    #[error("its images refer to more than {MAX_REFERENCES} blobs")]
    References,
    /// Indexes within indexes.
    #[error("its indexes are nested too deeply")]
    Depth,
}

impl From<Excess> for ArchiveError {
    fn from(excess: Excess) -> Self {
        Self::Excess(excess)
    }
}
