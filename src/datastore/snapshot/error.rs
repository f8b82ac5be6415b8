//! Why a snapshot cannot be taken or restored.

use std::io;
use std::path::PathBuf;

use super::label::SnapshotStore;
use crate::error::Error;

/// Each names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file or folder cannot be used.
    #[error("cannot {action} {}{}", path.display(), remedy(source))]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no room for it.
    #[error(
        "{} has {free} MiB free and the snapshot needs {needed} to leave the datastore its reserve: make room, or name \
         another folder with --snapshot-dir", folder.display()
    )]
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// MiB that are free.
        free: u64,
        /// MiB that are needed.
        needed: u64,
    },
    /// There is no room for the database that is in it.
    #[error(
        "{} has {free} MiB free and the snapshot unpacks to {needed} with the datastore's reserve: make room", directory.display()
    )]
    NoRoomToRestore {
        /// Where the database lies.
        directory: PathBuf,
        /// MiB that are free.
        free: u64,
        /// MiB that are needed.
        needed: u64,
    },
    /// Another snapshot is being saved.
    #[error("a snapshot is being saved already: wait until it is done")]
    UnderWay,
    /// A name that no file can have, or that belongs to something else.
    #[error("{0:?} is not a name for a snapshot: use letters, digits, dots, dashes and underscores")]
    Name(String),
    /// The file is something else.
    #[error(
        "{} is not a snapshot, or its end is missing: `k3s snapshot ls` lists what is one", _0.display()
    )]
    NotASnapshot(PathBuf),
    /// The file has changed since it was written.
    #[error("the snapshot {} is damaged ({finding}): restore another one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        finding: String,
    },
    /// A newer program wrote it.
    #[error("the snapshot {} is of a newer version ({version}): restore it with that one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version that wrote it.
        version: String,
    },
    /// It is of a server with another store.
    #[error("the snapshot {} is of {}: restore it where the cluster's state is kept so", path.display(), match store {
        SnapshotStore::Sqlite => "a datastore on SQLite, and this server has an etcd",
        SnapshotStore::Etcd => "an etcd, and this server has its datastore on SQLite",
    })]
    OtherStore {
        /// The file.
        path: PathBuf,
        /// What it is of.
        store: SnapshotStore,
    },
    /// etcd did not give its data to the end.
    #[error("etcd's data did not come whole: {0}")]
    Etcd(String),
    /// The database cannot be read, copied or opened.
    #[error(transparent)]
    Store(#[from] Error),
}

impl SnapshotError {
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

fn remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ", as the disk is full: make room on it, or name another folder with --snapshot-dir".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => ", as its file system is read-only: mount it writable".to_owned(),
        io::ErrorKind::PermissionDenied => ": run as root".to_owned(),
        _ => format!(": {error}"),
    }
}
