//! Reading image archives: OCI layouts and what `docker save` writes, as tar, or compressed by gzip, zstd, bzip2 or lz4.
//!
//! An archive is read at most twice, never into memory: once to learn which images it holds (only small documents are kept;
//! in an uncompressed archive all else is seeked over), and again to stream the blobs that are missing in containerd.

mod compression;
mod entries;
mod error;
mod image;
mod indexed;
mod limits;
mod saved;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    Digest,
    digest::Hashing,
    layout::{BLOBS, INDEX_FILE, LAYOUT_FILE},
};
use compression::Compression;
use entries::{ArchiveEntry, visit};
use indexed::Indexed;
use limits::{Kept, MAX_DOCUMENT};
use saved::SAVED_FILE;

pub use error::{ArchiveError, Excess};
pub(crate) use image::{Blob, Image, Source};
pub(crate) use stream::{Piece, stream};

/// The images of the archive at `path`.
pub(crate) fn images(path: &Path) -> Result<Vec<Image>, ArchiveError> {
    let mut contents = Contents::default();
    visit(path, |name, entry| {
        contents.add(name, entry)?;
        Ok(true)
    })?;
    let images = if contents.entry(INDEX_FILE).is_some() && contents.entry(LAYOUT_FILE).is_some() {
        Indexed::new(&contents).images()
    } else if contents.entry(SAVED_FILE).is_some() {
        saved::images(&contents)
    } else {
        Err(ArchiveError::NoImages)
    }?;
    if images.is_empty() { Err(ArchiveError::Unnamed) } else { Ok(images) }
}

/// What one pass over an archive learns.
#[derive(Debug, Default)]
struct Contents {
    kept: Kept,
    entries: HashMap<Arc<str>, Entry>,
    by_digest: HashMap<Digest, Arc<str>>,
    links: HashMap<Arc<str>, String>,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    /// Unknown only for uncompressed files outside of `blobs/`, whose digests docker's configurations tell.
    digest: Option<Digest>,
    compression: Compression,
    /// The text of what may be a document.
    json: Option<Vec<u8>>,
}

impl Contents {
    fn add(&mut self, name: String, entry: &mut dyn ArchiveEntry) -> Result<(), ArchiveError> {
        self.kept.entry(&name)?;
        if let Some(target) = entry.link(&name)? {
            self.kept.bytes(target.len())?;
            self.links.insert(name.into(), target);
            return Ok(());
        }
        if !entry.is_file() {
            return Ok(());
        }
        let size = entry.length();
        let named = name.strip_prefix(BLOBS).and_then(Digest::from_hex);
        let mut start = Vec::new();
        entry.take(if size <= MAX_DOCUMENT { size } else { 4 }).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let (digest, json) = if size <= MAX_DOCUMENT {
            let digest = Digest::of(&start);
            if named.is_some_and(|named| named != digest) || start.len() as u64 != size {
                return Err(ArchiveError::Damaged(name));
            }
            let is_json = matches!(start.first(), Some(b'{' | b'['));
            (Some(digest), is_json.then_some(start))
        } else if named.is_none() && compression != Compression::None {
            let mut hashing = Hashing::new(io::sink());
            io::copy(&mut start.chain(entry), &mut hashing)?;
            (Some(hashing.finish().1), None)
        } else {
            (named, None)
        };
        self.kept.bytes(json.as_ref().map_or(0, Vec::len))?;
        let name: Arc<str> = name.into();
        if let Some(digest) = digest {
            self.by_digest.insert(digest, name.clone());
        }
        self.entries.insert(name, Entry { size, digest, compression, json });
        Ok(())
    }

    fn entry(&self, path: &str) -> Option<(&Arc<str>, &Entry)> {
        self.entries.get_key_value(path)
    }

    /// Where the link at `path` points to.
    fn link(&self, path: &str) -> Option<&str> {
        self.links.get(path).map(String::as_str)
    }

    fn by_digest(&self, digest: &Digest) -> Result<(&Arc<str>, &Entry), ArchiveError> {
        let path = self.by_digest.get(digest).ok_or_else(|| ArchiveError::Missing(digest.to_string()))?;
        Ok((path, &self.entries[path]))
    }

    /// The document at `path`, read when it is asked for: of the many that an archive may hold, few count at a time.
    fn document<T: DeserializeOwned>(&self, path: &str, expected: &'static str) -> Result<T, ArchiveError> {
        let json = self.entry(path).and_then(|(_, entry)| entry.json.as_deref());
        let document = json.and_then(|json| serde_json::from_slice(json).ok());
        document.ok_or_else(|| ArchiveError::Document { entry: path.to_owned(), expected })
    }
}
