//! What a snapshot says of itself, and the checksum that closes its file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};

use super::SnapshotError;

/// First bytes of a frame that zstd skips, and of its length.
const SKIPPABLE_FRAME: [u8; 4] = 0x184D_2A5B_u32.to_le_bytes();
const FRAME_HEAD: u64 = 8;
/// Last bytes of a snapshot.
const MARK: [u8; 4] = *b"k3s1";
/// The label's length and the mark.
const TAIL: u64 = 8;
const CHECKSUM: u64 = SHA256_OUTPUT_LEN as u64;
/// More than any label has.
const LARGEST_LABEL: u64 = 64 << 10;
/// As much as may be noted in it, in bytes of JSON.
pub(super) const LARGEST_METADATA: usize = 32 << 10;

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Label {
    /// The node that took it.
    pub node: String,
    /// When, in seconds of Unix time.
    pub created: u64,
    /// The newest revision in it.
    pub revision: i64,
    /// Bytes of the database.
    pub database_bytes: u64,
    /// Whether the database is a zstd frame.
    pub compressed: bool,
    /// Whose file the database is; SQLite's where nothing is said.
    #[serde(default)]
    pub store: SnapshotStore,
    /// Format number of the database; newer ones are refused.
    pub format: i64,
    /// What `k3s --version` calls itself.
    pub version: String,
    /// What k3s tells tokens apart by: the first twelve digits of the SHA-256 of the password that opens it.
    pub token_hash: String,
    /// What users wanted to be noted beside it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// What can go on from a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotStore {
    /// Our store, on SQLite.
    #[default]
    Sqlite,
    /// etcd: the database is what its own client saves.
    Etcd,
}

/// A snapshot's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says of itself.
    pub label: Label,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many of them are the database.
    pub(super) payload: u64,
}

impl Snapshot {
    /// Reads a file's label. Whether the rest is sound, [`Snapshot::check`] tells.
    ///
    /// # Errors
    /// [`SnapshotError::NotASnapshot`]; [`SnapshotError::File`] if it cannot be read.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let unreadable = || SnapshotError::file("read", path);
        let mut file = File::open(path).map_err(unreadable())?;
        let bytes = file.metadata().map_err(unreadable())?.len();
        let closing = read_closing(&mut file, bytes).map_err(unreadable())?;
        let (label, payload) = closing.ok_or_else(|| SnapshotError::NotASnapshot(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), label, bytes, payload })
    }

    /// Reads the whole file and compares its checksum.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`]; [`SnapshotError::File`] if it cannot be read.
    pub fn check(&self) -> Result<(), SnapshotError> {
        let unreadable = || SnapshotError::file("read", &self.path);
        let mut file = File::open(&self.path).map_err(unreadable())?;
        let covered = self.bytes.saturating_sub(TAIL + CHECKSUM);
        let computed = checksum(&mut (&mut file).take(covered)).map_err(unreadable())?;
        let mut stored = [0; SHA256_OUTPUT_LEN];
        file.read_exact(&mut stored).map_err(unreadable())?;
        if computed.as_slice() == stored {
            return Ok(());
        }
        Err(SnapshotError::Damaged { path: self.path.clone(), finding: "its checksum does not match".to_owned() })
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Closes a file that holds the database by its label and checksum, and puts all of it on the disk.
pub(super) fn close(path: &Path, label: Label) -> io::Result<Snapshot> {
    let mut file = fs::OpenOptions::new().read(true).append(true).open(path)?;
    let payload = file.metadata()?.len();
    let json = serde_json::to_vec(&label)?;
    let [label_length, frame_length] =
        [json.len(), json.len() + SHA256_OUTPUT_LEN + 8].map(|length| u32::try_from(length).unwrap_or(u32::MAX));
    file.write_all(&[SKIPPABLE_FRAME.as_slice(), &frame_length.to_le_bytes(), &json].concat())?;
    file.rewind()?;
    // Read back, so that it tells of what is in the file rather than of what was meant to be.
    let checksum = checksum(&mut file)?;
    file.write_all(&[checksum.as_slice(), &label_length.to_le_bytes(), &MARK].concat())?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    Ok(Snapshot { path: path.to_owned(), label, bytes, payload })
}

/// The label and the length of what is before it; `None` if the file does not end as a snapshot.
fn read_closing(file: &mut File, bytes: u64) -> io::Result<Option<(Label, u64)>> {
    let Some(tail_at) = bytes.checked_sub(TAIL) else { return Ok(None) };
    file.seek(SeekFrom::Start(tail_at))?;
    let mut tail = [0; TAIL as usize];
    file.read_exact(&mut tail)?;
    let [a, b, c, d, mark @ ..] = tail;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let label_at = tail_at.checked_sub(CHECKSUM + length).filter(|_| mark == MARK && length <= LARGEST_LABEL);
    let Some((label_at, payload)) = label_at.and_then(|at| Some((at, at.checked_sub(FRAME_HEAD)?))) else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(label_at))?;
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json).ok().map(|label| (label, payload)))
}

fn checksum(from: &mut impl Read) -> io::Result<[u8; SHA256_OUTPUT_LEN]> {
    let mut context = Context::new(&SHA256);
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => context.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut checksum = [0; SHA256_OUTPUT_LEN];
    checksum.copy_from_slice(context.finish().as_ref());
    Ok(checksum)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn label() -> Label {
        Label {
            node: "edge-7".to_owned(),
            created: 1_795_000_000,
            revision: 42,
            database_bytes: 10,
            compressed: false,
            store: SnapshotStore::Sqlite,
            format: 1,
            version: "v1.36.3+k3s1".to_owned(),
            token_hash: "1ec1c26b50d5".to_owned(),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn a_file_tells_its_label_and_whether_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        fs::write(&path, "a database").unwrap();
        let written = close(&path, label()).unwrap();
        assert_eq!((written.payload, written.name().as_str()), (10, "snapshot"));
        let snapshot = Snapshot::open(&path).unwrap();
        assert_eq!(snapshot, written);
        snapshot.check().unwrap();

        let sound = fs::read(&path).unwrap();
        for at in [0, 9, 10, 30, sound.len() - 20] {
            let mut damaged = sound.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let outcome = Snapshot::open(&path).and_then(|snapshot| snapshot.check());
            assert!(
                matches!(outcome, Err(SnapshotError::Damaged { .. } | SnapshotError::NotASnapshot(_))),
                "{at}: {outcome:?}"
            );
        }
        for length in [0, 5, 8, 10, sound.len() - 1] {
            fs::write(&path, &sound[..length]).unwrap();
            assert!(matches!(Snapshot::open(&path), Err(SnapshotError::NotASnapshot(_))), "{length}");
        }
    }
}
