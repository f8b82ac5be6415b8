//! Snapshots of an etcd: its own file, as it sends it, with the digest that it puts at the end.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use tokio::io::AsyncWriteExt as _;
use tokio::task::spawn_blocking;

use super::SnapshotError;
use super::label::{Snapshot, SnapshotStore};
use super::save::{self, Data, Save};
use crate::error::Error;
use crate::members::EtcdCluster;
use crate::revision::Revision;

/// Pages of etcd's database are multiples of it, so that a digest at the end shows.
const SECTOR: u64 = 512;
const DIGEST: u64 = SHA256_OUTPUT_LEN as u64;
/// bbolt's mark, and where it stands in the first page.
const MARK: [u8; 4] = 0xED0C_DAED_u32.to_le_bytes();
const MARK_AT: u64 = 16;

/// Saves what the asked member of `etcd` has at this moment; writers go on meanwhile. What is not complete does not stay.
///
/// # Errors
/// [`SnapshotError::Etcd`] if the member does not give its data to the end; any other [`SnapshotError`] of the folder.
pub async fn save_etcd(etcd: &EtcdCluster, save: Save) -> Result<Snapshot, SnapshotError> {
    let status = etcd.status().await.map_err(|error| SnapshotError::Etcd(error.to_string()))?;
    let (save, part) = blocking(move || {
        let part = save::begin(&save, status.bytes)?;
        Ok((save, part))
    })
    .await?;
    let failed = || SnapshotError::file("write", &part.0);
    let mut file = tokio::fs::File::create(&part.0).await.map_err(failed())?;
    etcd.snapshot(async |blob| file.write_all(&blob).await)
        .await
        .map_err(|error| SnapshotError::Etcd(error.to_string()))?;
    file.flush().await.map_err(failed())?;
    drop(file);
    blocking(move || {
        let bytes = whole(&part.0).map_err(SnapshotError::file("read", &part.0))?;
        let bytes = bytes.ok_or_else(|| SnapshotError::Etcd("its digest is another one".to_owned()))?;
        let data = Data { store: SnapshotStore::Etcd, bytes, revision: Revision(status.revision), format: 0 };
        save::finish(&save, part, data)
    })
    .await
}

/// Whether `path` is a file that etcd's own client has saved, without a label of ours.
///
/// # Errors
/// [`SnapshotError::File`] if it cannot be read.
pub fn is_of_etcd(path: &Path) -> Result<bool, SnapshotError> {
    let looked = || {
        let mut file = File::open(path)?;
        if file.metadata()?.len() % SECTOR != DIGEST {
            return Ok(false);
        }
        let mut mark = [0; MARK.len()];
        file.seek(SeekFrom::Start(MARK_AT))?;
        file.read_exact(&mut mark)?;
        Ok(mark == MARK)
    };
    looked().map_err(SnapshotError::file("read", path))
}

/// The size of a file whose end is the digest of all before it; `None` if it is not.
fn whole(path: &Path) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes % SECTOR != DIGEST {
        return Ok(None);
    }
    let mut context = Context::new(&SHA256);
    let (mut left, mut buffer) = (bytes - DIGEST, vec![0; 64 << 10]);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..length])?;
        context.update(&buffer[..length]);
        left -= length as u64;
    }
    let mut stored = [0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut stored)?;
    Ok((context.finish().as_ref() == stored).then_some(bytes))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    // A panic of it is in the log.
    spawn_blocking(work).await.map_err(|_| Error::Closed)?
}

#[cfg(test)]
mod tests {
    use std::fs;

    use aws_lc_rs::digest::digest;

    use super::*;

    #[test]
    fn a_file_of_etcds_is_known_and_checked_by_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut database = vec![0; 4096];
        database[16..20].copy_from_slice(&MARK);
        let saved = [&database, digest(&SHA256, &database).as_ref()].concat();
        fs::write(&path, &saved).unwrap();
        assert_eq!((is_of_etcd(&path).unwrap(), whole(&path).unwrap()), (true, Some(4096 + 32)));
        let mut damaged = saved;
        damaged[100] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert_eq!(whole(&path).unwrap(), None);
        for other in [&database[..], b"notes", &[0; 544]] {
            fs::write(&path, other).unwrap();
            assert!(!is_of_etcd(&path).unwrap());
        }
    }
}
