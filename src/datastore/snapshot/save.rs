//! Taking a snapshot of a store that is in use.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statvfs::statvfs;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::SnapshotError;
use super::folder::{COMPRESSED, SnapshotFolder};
use super::label::{self, LARGEST_METADATA, Label, Snapshot, SnapshotStore};
use crate::log::sqlite::copy::{self, Contents};
use crate::revision::Revision;

/// What a file is called until it is complete.
const PART: &str = ".part";
/// Bytes that stay free beside a snapshot: twice the datastore's own reserve.
pub(super) const SPARE: u64 = 64 << 20;

/// How to take a snapshot.
#[derive(Clone, Debug)]
pub struct Save {
    /// Where it goes; it has to be there.
    pub folder: PathBuf,
    /// What its name begins with.
    pub name: String,
    /// The node that takes it; part of the name.
    pub node: String,
    /// As a zstd frame: a third of the size, at the cost of processor time.
    pub compress: bool,
    /// What `k3s --version` calls itself.
    pub version: String,
    /// Tells which token opens it.
    pub token_hash: String,
    /// What is noted beside it: at most half of what a label can be, or nothing of it.
    pub metadata: BTreeMap<String, String>,
}

/// Saves the store in `database` as it is at this moment; writers go on meanwhile. What is not complete does not stay,
/// whatever happens.
pub(crate) fn save(database: &Path, save: &Save, cancel: &CancellationToken) -> Result<Snapshot, SnapshotError> {
    let size = fs::metadata(database).map_err(SnapshotError::file("read", database))?.len();
    let plain = begin(save, size)?;
    copy::copy(database, &plain.0, cancel)?;
    let Contents { bytes, revision, format } = copy::finish_copy(&plain.0)?;
    finish(save, plain, Data { store: SnapshotStore::Sqlite, bytes, revision, format })
}

/// What a file holds that becomes a snapshot.
pub(super) struct Data {
    pub(super) store: SnapshotStore,
    pub(super) bytes: u64,
    pub(super) revision: Revision,
    pub(super) format: i64,
}

/// An empty file for data of about this size, in a folder that has room for it.
pub(super) fn begin(save: &Save, size: u64) -> Result<Part, SnapshotError> {
    SnapshotFolder::new(&save.folder).check_name(&save.base())?;
    fs::read_dir(&save.folder).map_err(SnapshotError::file("use the folder", &save.folder))?;
    remove_leftovers(&save.folder).map_err(SnapshotError::file("clean up", &save.folder))?;
    check_room(size, save)?;
    Part::create(&save.folder, "plain")
}

/// Makes a snapshot of the file that holds `data`.
pub(super) fn finish(save: &Save, plain: Part, data: Data) -> Result<Snapshot, SnapshotError> {
    let (created, path) = unused_name(&save.folder, &save.base(), save.compress);
    let failed = || SnapshotError::file("write", &path);
    let part = if save.compress {
        let packed = Part::create(&save.folder, "packed")?;
        compress(&plain.0, &packed.0).map_err(failed())?;
        packed
    } else {
        plain
    };
    let label = Label {
        node: save.node.clone(),
        created,
        revision: data.revision.0,
        database_bytes: data.bytes,
        compressed: save.compress,
        store: data.store,
        format: data.format,
        version: save.version.clone(),
        token_hash: save.token_hash.clone(),
        metadata: noted(save),
    };
    let mut snapshot = label::close(&part.0, label).map_err(failed())?;
    fs::rename(&part.0, &path).map_err(failed())?;
    File::open(&save.folder).and_then(|folder| folder.sync_all()).map_err(failed())?;
    snapshot.path = path;
    Ok(snapshot)
}

/// A label that is too long could not be read again.
fn noted(save: &Save) -> BTreeMap<String, String> {
    let bytes = serde_json::to_vec(&save.metadata).map_or(usize::MAX, |json| json.len());
    if bytes <= LARGEST_METADATA {
        return save.metadata.clone();
    }
    warn!(bytes, limit = LARGEST_METADATA, "What is to be noted beside a snapshot is too much, and is left out.");
    BTreeMap::new()
}

impl Save {
    /// What its name begins with, before the time.
    fn base(&self) -> String {
        [self.name.as_str(), self.node.as_str()].join("-")
    }
}

/// A file that goes when it is dropped, unless it was renamed.
pub(super) struct Part(pub(super) PathBuf);

impl Part {
    fn create(folder: &Path, what: &str) -> Result<Self, SnapshotError> {
        let path = folder.join(format!(".{what}{PART}"));
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        created.map_err(SnapshotError::file("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It was renamed, or what is left goes with the next snapshot.
        let _ = fs::remove_file(&self.0);
    }
}

/// What a crash left behind: nobody else writes here, since one process at a time holds the database.
fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().strip_prefix('.').is_some_and(|name| name.contains(PART)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn check_room(size: u64, save: &Save) -> Result<(), SnapshotError> {
    let disk =
        statvfs(&save.folder).map_err(|errno| SnapshotError::file("use the folder", &save.folder)(errno.into()))?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    // While it is compressed, both files are there; what is packed is smaller, but how much is not known before.
    let needed = if save.compress { 2 * size } else { size } + SPARE;
    if free < needed {
        return Err(SnapshotError::NoRoom { folder: save.folder.clone(), free: free >> 20, needed: needed >> 20 });
    }
    Ok(())
}

/// A time and a name by it that no other snapshot has.
fn unused_name(folder: &Path, base: &str, compress: bool) -> (u64, PathBuf) {
    let mut unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    loop {
        let names = ["", COMPRESSED].map(|suffix| folder.join(format!("{base}-{unix}{suffix}")));
        if names.iter().all(|path| !path.exists()) {
            let [plain, packed] = names;
            return (unix, if compress { packed } else { plain });
        }
        unix += 1;
    }
}

fn compress(from: &Path, to: &Path) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(OpenOptions::new().write(true).open(to)?, zstd::DEFAULT_COMPRESSION_LEVEL)?;
    io::copy(&mut File::open(from)?, &mut encoder)?;
    encoder.finish().map(drop)
}
