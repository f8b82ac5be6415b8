//! A set for an update, as it comes: a tar archive that is read from its beginning to its end, once, and believed in nothing that the
//! signature at its beginning does not cover.
//!
//! ```text
//! manifest.json   manifest.json.minisig   root.raw   verity.raw   kernel.efi
//! ```

use std::io::{self, Read, Write};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entries, Entry};

use crate::{Manifest, ManifestError, Part, UpdateKey};

/// Its first two files.
pub const MANIFEST: &str = "manifest.json";
/// The signature of the first.
pub const SIGNATURE: &str = "manifest.json.minisig";

/// Bytes of either.
const LONGEST_TEXT: u64 = 64 << 10;
/// Bytes that are read and written at a time.
const CHUNK: usize = 1 << 20;

/// A set whose manifest is read already.
pub struct UpdateSet<'a, R: Read> {
    entries: Entries<'a, R>,
    manifest: Manifest,
}

/// Why a set is not taken. Each is about the set: what it is called comes before.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It does not come any more.
    #[error("it cannot be read to its end: {0}")]
    Read(io::Error),
    /// It is something else.
    #[error("it is no set for updates: {expected} is not where it should be; use a file k3s_VERSION.update")]
    NotASet {
        /// The file that should have come.
        expected: &'static str,
    },
    /// Its manifest is not believed or not followed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A part is longer or shorter than was signed.
    #[error("{part} has {is} bytes in it, and {signed} were signed: fetch it again")]
    Size {
        /// Which.
        part: Part,
        /// Its bytes by the archive.
        is: u64,
        /// Its bytes by the manifest.
        signed: u64,
    },
    /// A part is another one than was signed.
    #[error("{0} in it is not what was signed: it was changed on its way, fetch it again")]
    Digest(Part),
    /// A part cannot be written.
    #[error("{part} cannot be written: {source}")]
    Write {
        /// Which.
        part: Part,
        /// What the system says.
        source: io::Error,
    },
}

impl<'a, R: Read> UpdateSet<'a, R> {
    /// Reads the beginning of `archive`, and believes what `key` has signed.
    ///
    /// # Errors
    /// It is no set, is not signed with this key, or was changed.
    pub fn open(archive: &'a mut Archive<R>, key: &UpdateKey) -> Result<Self, SetError> {
        // An archive's extensions are read into memory at any length: here they are entries of an unknown name.
        let mut entries = archive.entries().map_err(SetError::Read)?.raw(true);
        let manifest = text(&mut entries, MANIFEST)?;
        let signature = text(&mut entries, SIGNATURE)?;
        let manifest = key.open(&manifest, &String::from_utf8_lossy(&signature))?;
        Ok(Self { entries, manifest })
    }

    /// What is signed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes the next part, which has to be `part`, to `to`, and calls `progress` with the bytes so far.
    ///
    /// # Errors
    /// It is not what was signed; `to` may hold some of it then.
    pub fn copy(&mut self, part: Part, to: &mut impl Write, mut progress: impl FnMut(u64)) -> Result<(), SetError> {
        let signed = self.manifest.content(part).clone();
        let mut entry = next(&mut self.entries, part.name())?;
        if entry.size() != signed.size {
            return Err(SetError::Size { part, is: entry.size(), signed: signed.size });
        }
        let (mut hash, mut chunk, mut done) = (Sha256::new(), vec![0; CHUNK], 0);
        loop {
            let read = entry.read(&mut chunk).map_err(SetError::Read)?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            to.write_all(&chunk[..read]).map_err(|source| SetError::Write { part, source })?;
            done += read as u64;
            progress(done);
        }
        if done != signed.size {
            return Err(SetError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        if HEXLOWER.encode(&hash.finalize()) == signed.sha256 { Ok(()) } else { Err(SetError::Digest(part)) }
    }
}

fn text<R: Read>(entries: &mut Entries<'_, R>, name: &'static str) -> Result<Vec<u8>, SetError> {
    let entry = next(entries, name)?;
    if entry.size() > LONGEST_TEXT {
        return Err(SetError::NotASet { expected: name });
    }
    let (size, mut bytes) = (entry.size(), Vec::new());
    entry.take(LONGEST_TEXT).read_to_end(&mut bytes).map_err(SetError::Read)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(SetError::Read(io::ErrorKind::UnexpectedEof.into())) }
}

fn next<'a, R: Read>(entries: &mut Entries<'a, R>, name: &'static str) -> Result<Entry<'a, R>, SetError> {
    let entry = match entries.next() {
        Some(Ok(entry)) => entry,
        // An archive that is none is told by its first header's checksum; one that breaks off by its length.
        Some(Err(error)) if error.kind() == io::ErrorKind::Other => return Err(SetError::NotASet { expected: name }),
        Some(Err(error)) => return Err(SetError::Read(error)),
        None => return Err(SetError::NotASet { expected: name }),
    };
    if *entry.path_bytes() == *name.as_bytes() { Ok(entry) } else { Err(SetError::NotASet { expected: name }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use tar::{Builder, Header};

    use super::*;
    use crate::manifest::tests as signed;

    /// An archive of these files.
    pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = Header::new_ustar();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub(crate) fn files() -> Vec<(&'static str, &'static [u8])> {
        vec![
            (MANIFEST, signed::MANIFEST),
            (SIGNATURE, signed::SIGNATURE.as_bytes()),
            ("root.raw", b"root of 2"),
            ("verity.raw", b"hashes"),
            ("kernel.efi", b"kernel"),
        ]
    }

    /// All parts of a set, or why there are none.
    fn read(archive: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let key = UpdateKey::parse(signed::KEY).unwrap();
        let mut archive = Archive::new(archive);
        let mut set = UpdateSet::open(&mut archive, &key).map_err(|error| error.to_string())?;
        let part = |part| {
            let mut bytes = Vec::new();
            set.copy(part, &mut bytes, |_| {}).map(|()| bytes).map_err(|error| error.to_string())
        };
        [Part::Root, Part::Verity, Part::Kernel].into_iter().map(part).collect()
    }

    #[test]
    fn a_set_is_its_parts() {
        let parts = read(&archive(&files())).unwrap();
        assert_eq!(parts, [&b"root of 2"[..], b"hashes", b"kernel"]);
        // On a disk there may be anything behind it.
        let mut on_a_disk = archive(&files());
        on_a_disk.extend([0xff; 4096]);
        assert!(read(&on_a_disk).is_ok());
    }

    #[test]
    fn what_is_not_as_it_was_signed_is_one_sentence() {
        let with = |index: usize, name: &'static str, bytes: &'static [u8]| {
            let mut files = files();
            files[index] = (name, bytes);
            read(&archive(&files)).unwrap_err()
        };
        let changed = "in it is not what was signed: it was changed on its way, fetch it again";
        assert_eq!(with(2, "root.raw", b"root of 3"), format!("root.raw {changed}"));
        assert_eq!(with(4, "kernel.efi", b"Kernel"), format!("kernel.efi {changed}"));
        assert_eq!(with(3, "verity.raw", b"hash"), "verity.raw has 4 bytes in it, and 6 were signed: fetch it again");
        assert_eq!(with(0, MANIFEST, b"{}"), "its signature does not fit: it was changed on its way, fetch it again");
        let no_set =
            |file| format!("it is no set for updates: {file} is not where it should be; use a file k3s_VERSION.update");
        assert_eq!(with(2, "kernel.efi", b"kernel"), no_set("root.raw"));
        assert_eq!(with(0, "root.raw", b"root of 2"), no_set(MANIFEST));
        assert_eq!(read(&[b'x'; 4096]).unwrap_err(), no_set(MANIFEST));
        assert_eq!(read(b"").unwrap_err(), no_set(MANIFEST));
        static LONG: [u8; 1 << 17] = [b' '; 1 << 17];
        assert_eq!(with(0, MANIFEST, &LONG), no_set(MANIFEST));
    }

    #[test]
    fn a_set_that_breaks_off_anywhere_is_refused() {
        let whole = archive(&files());
        // Behind the kernel there is padding only.
        let end = whole.windows(6).rposition(|bytes| bytes == b"kernel").unwrap();
        for length in (0..end).step_by(97) {
            assert!(read(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
