//! How much of an archive is taken into memory, whatever it holds: 32 MiB for what is kept, some MiB for the document being read.

use std::{
    cell::Cell,
    io::{self, Read, Seek, SeekFrom},
    rc::Rc,
};

use super::error::Excess;

/// No index, manifest or configuration of an image is longer.
pub(super) const MAX_DOCUMENT: u64 = 1 << 20;
/// How deep indexes nest: index.json, an image's index, its manifests, and one to spare.
pub(super) const MAX_DEPTH: usize = 4;
/// Bytes of the headers before an entry: long names have at most 4 KiB, attributes a few hundred bytes.
pub(super) const MAX_HEADER: u64 = 64 << 10;
/// Files, folders and links; six hundred images that docker saved layer by layer have a third of it.
pub(super) const MAX_ENTRIES: usize = 1 << 16;
/// Bytes of names and documents together; six hundred images have a third of it.
pub(super) const MAX_KEPT: usize = 32 << 20;
/// Descriptors in all images together.
pub(super) const MAX_REFERENCES: usize = 1 << 16;

/// What one pass over an archive has kept so far.
#[derive(Debug, Default)]
pub(super) struct Kept {
    entries: usize,
    bytes: usize,
}

impl Kept {
    /// One more entry of this name.
    pub(super) fn entry(&mut self, name: &str) -> Result<(), Excess> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES { Err(Excess::Entries) } else { self.bytes(name.len()) }
    }

    /// So many bytes more.
    pub(super) fn bytes(&mut self, count: usize) -> Result<(), Excess> {
        self.bytes += count;
        if self.bytes > MAX_KEPT { Err(Excess::Kept) } else { Ok(()) }
    }
}

/// A reader that gives no more than [`MAX_HEADER`] bytes while a header is read: the crate `tar` reads long names whole.
pub(super) struct HeaderReader<R> {
    inner: R,
    left: HeaderBudget,
}

/// Begins and ends headers of a [`HeaderReader`], which the archive holds.
#[derive(Clone)]
pub(super) struct HeaderBudget(Rc<Cell<Option<u64>>>);

impl<R> HeaderReader<R> {
    /// Reads from `inner`, as a header at first.
    pub(super) fn new(inner: R) -> (Self, HeaderBudget) {
        let left = HeaderBudget(Rc::new(Cell::new(None)));
        left.begin();
        (Self { inner, left: left.clone() }, left)
    }
}

impl HeaderBudget {
    /// A header comes next.
    pub(super) fn begin(&self) {
        self.0.set(Some(MAX_HEADER));
    }

    /// An entry's content comes next. Tells whether its header was within bounds.
    pub(super) fn end(&self) -> Result<(), Excess> {
        if self.0.replace(None) == Some(0) { Err(Excess::Header) } else { Ok(()) }
    }
}

impl<R: Read> Read for HeaderReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.0.get() else { return self.inner.read(buffer) };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.0.set(Some(left - read as u64));
        Ok(read)
    }
}

impl<R: Seek> Seek for HeaderReader<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
