//! The content of entries, piece by piece.

use std::{collections::HashSet, io::Read as _, path::Path};

use tokio::sync::mpsc;

use super::{entries::visit, error::ArchiveError};

/// What is handed over at a time.
const PIECE: usize = 256 << 10;

/// A piece of the streamed entries.
#[derive(Debug)]
pub(crate) enum Piece {
    /// What follows is the content of this entry.
    Start(String),
    Data(Vec<u8>),
}

/// Sends the content of the `wanted` entries, in the archive's order. Ends early when nobody receives any more.
pub(crate) fn stream(
    path: &Path,
    mut wanted: HashSet<String>,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), ArchiveError> {
    visit(path, |name, mut entry| {
        if wanted.remove(&name) {
            let mut open = pieces.blocking_send(Piece::Start(name)).is_ok();
            while open {
                let mut piece = Vec::with_capacity(PIECE);
                if (&mut entry).take(PIECE as u64).read_to_end(&mut piece)? == 0 {
                    break;
                }
                open = pieces.blocking_send(Piece::Data(piece)).is_ok();
            }
        }
        Ok(!wanted.is_empty() && !pieces.is_closed())
    })?;
    match wanted.into_iter().next() {
        // The file is not the one that was looked through before.
        Some(gone) if !pieces.is_closed() => Err(ArchiveError::Missing(gone)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        Digest,
        contents::{
            Source, images,
            testing::{bzip2, gzip, lz4, packed},
        },
    };

    #[test]
    fn wanted_entries_are_streamed_and_only_those() {
        let archive = packed("a");
        for archive in [gzip(&archive), bzip2(&archive), lz4(&archive), archive] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), archive).unwrap();
            let layer = images(file.path()).unwrap().swap_remove(0).blobs.swap_remove(1);
            let Source::Entry(path) = layer.source else { panic!("{layer:?}") };
            let (sender, mut pieces) = mpsc::channel(100);
            stream(file.path(), [path.to_string()].into(), &sender).unwrap();
            assert!(matches!(pieces.try_recv(), Ok(Piece::Start(started)) if *started == *path));
            let mut content = Vec::new();
            while let Ok(Piece::Data(data)) = pieces.try_recv() {
                assert!(data.len() <= PIECE);
                content.extend(data);
            }
            assert_eq!(Digest::of(&content), layer.digest);
            let gone = stream(file.path(), ["gone".to_owned()].into(), &sender).unwrap_err();
            assert_eq!(gone.to_string(), "gone is missing in it");
        }
    }
}
