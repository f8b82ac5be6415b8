//! The entries of a tar archive, in the order of the file.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::{Component, Path},
};

use bzip2::bufread::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;

use super::{
    compression::Compression,
    error::ArchiveError,
    limits::{HeaderBudget, HeaderReader},
};

/// A tar entry, whatever the archive reads from.
pub(super) trait ArchiveEntry: Read {
    fn length(&self) -> u64;
    /// Where a symbolic or hard link points to, as a path of the archive.
    fn link(&self, name: &str) -> io::Result<Option<String>>;
    fn is_file(&self) -> bool;
}

/// Calls `each` for every entry until it returns false.
pub(super) fn visit(
    path: &Path,
    mut each: impl FnMut(String, &mut dyn ArchiveEntry) -> Result<bool, ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut file = File::open(path)?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    let compressed: Box<dyn Read> = match Compression::of(&magic) {
        Compression::None => {
            let length = file.metadata()?.len();
            let (file, header) = HeaderReader::new(file);
            let mut archive = tar::Archive::new(file);
            let mut entries = archive.entries_with_seek()?;
            while let Some(mut entry) = next(&mut entries, &header)? {
                // Seeking beyond a truncated file's end does not fail.
                if entry.raw_file_position().saturating_add(entry.size()) > length {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                if !each(entry_name(&entry)?, &mut entry)? {
                    break;
                }
            }
            return Ok(());
        }
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        Compression::Zstd => Box::new(zstd::Decoder::new(file)?),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(BufReader::new(file))),
        Compression::Lz4 => Box::new(FrameDecoder::new(BufReader::new(file))),
        // Its dictionary may be gigabytes.
        Compression::Xz => return Err(ArchiveError::Compression),
    };
    let (compressed, header) = HeaderReader::new(compressed);
    let mut archive = tar::Archive::new(compressed);
    let mut entries = archive.entries()?;
    while let Some(mut entry) = next(&mut entries, &header)? {
        if !each(entry_name(&entry)?, &mut entry)? {
            return Ok(());
        }
        // Here rather than by the next header, which is bounded.
        io::copy(&mut entry, &mut io::sink())?;
    }
    // A checksum stands at the end of the compressed stream.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// A path without `.` components, as the documents refer to it.
pub(super) fn normalised(path: &Path) -> String {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

fn next<'a, R: Read>(
    entries: &mut tar::Entries<'a, R>,
    header: &HeaderBudget,
) -> Result<Option<tar::Entry<'a, R>>, ArchiveError> {
    header.begin();
    let next = entries.next();
    header.end()?;
    Ok(next.transpose()?)
}

fn entry_name(entry: &tar::Entry<'_, impl Read>) -> io::Result<String> {
    Ok(normalised(&entry.path()?))
}

impl<R: Read> ArchiveEntry for tar::Entry<'_, R> {
    fn length(&self) -> u64 {
        self.size()
    }

    fn link(&self, name: &str) -> io::Result<Option<String>> {
        let kind = self.header().entry_type();
        let Some(target) = self.link_name()?.filter(|_| kind.is_symlink() || kind.is_hard_link()) else {
            return Ok(None);
        };
        let base = Path::new(name).parent().filter(|_| kind.is_symlink()).unwrap_or(Path::new(""));
        Ok(Some(normalised(&base.join(target))))
    }

    fn is_file(&self) -> bool {
        self.header().entry_type().is_file()
    }
}
