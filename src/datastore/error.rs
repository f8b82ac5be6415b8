//! What can go wrong: with the store as a whole, and with one request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;
use sysexits::ExitCode;

/// Why the store cannot be opened, or has stopped. Each is one sentence that names the file and what to do; nothing in
/// the files was changed by an open that ends like this.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the store could not be used.
    #[error("cannot {action} {path}: {source}{}", io_remedy(source))]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// SQLite refused an operation.
    #[error("cannot {action} the database {path}: {source}{}", sqlite_remedy(source))]
    Sqlite {
        /// What was tried, as a verb.
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<rusqlite::Error>,
    },
    /// What lies at the path is no regular file.
    #[error("{path} is {kind}, not a database file: give the path of a file, or move it away")]
    NotAFile {
        /// The path, links followed as far as they lead.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// The file is not an SQLite database, or its first bytes are damaged.
    #[error(
        "{0} is not an SQLite database; it is left as it is: restore a snapshot (k3s snapshot restore), or move it away \
         to start with an empty store"
    )]
    NotADatabase(PathBuf),
    /// The file is an SQLite database that neither kine nor this program has made.
    #[error(
        "{path} is the database of another program ({finding}); it is left as it is: give another path, or move it away to \
         start with an empty store"
    )]
    Foreign {
        /// The database file.
        path: PathBuf,
        /// How it was told.
        finding: String,
    },
    /// The file, or a row in it, cannot be what was written.
    #[error(
        "the database {path} is damaged: {finding}; nothing was changed: keep a copy of it and of the files beside it, \
         then restore a snapshot (k3s snapshot restore), or move them away to start with an empty store"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What was found first.
        finding: String,
    },
    /// The write-ahead log is there and its database is not. SQLite would delete such a log.
    #[error(
        "{0} is missing or empty, and the write-ahead log {0}-wal beside it is not; nothing was changed: put the database \
         back, or restore a snapshot (k3s snapshot restore), or move the log away to start with an empty store"
    )]
    MissingDatabase(PathBuf),
    /// There was no clean stop, and the write-ahead log with the last commits is gone.
    #[error(
        "the write-ahead log {0}-wal is missing, and {0} was not closed properly: what was acknowledged last may be lost; \
         put the log back, or restore a snapshot (k3s snapshot restore), or remove {0}-lock to go on without it"
    )]
    MissingLog(PathBuf),
    /// Commits behind a damaged place of the write-ahead log cannot be read any more.
    #[error(
        "the write-ahead log {path}-wal is damaged before its end, and {commits} or more acknowledged commits behind that \
         cannot be read; nothing was changed: keep a copy of it and of the database, then restore a snapshot \
         (k3s snapshot restore), or remove {path}-lock to go on without them"
    )]
    LostCommits {
        /// The database file.
        path: PathBuf,
        /// How many are known to be lost, at least.
        commits: usize,
    },
    /// The file was written by a newer version of this program, or of kine.
    #[error("the database {path} was written by a newer program ({finding}): use that one")]
    Newer {
        /// The database file.
        path: PathBuf,
        /// What this program does not know.
        finding: String,
    },
    /// Another process has the database open.
    #[error("the database {path} is in use by {}: stop that one first", process(*holder))]
    InUse {
        /// The database file.
        path: PathBuf,
        /// Its process id, where the kernel tells.
        holder: Option<i32>,
    },
    /// Somebody else has written to the database while we served it.
    #[error(
        "the database {0} was changed by another program while it was in use here; writing has stopped to keep the \
         revisions in order: stop the other program (kine or k3s?) and start this one again"
    )]
    ForeignWriter(PathBuf),
    /// Two rows claim the same place in a key's history: two programs have written at the same time.
    #[error(
        "the database {path} has two rows for key {key:?} after revision {previous}, which kine would refuse too: restore a \
         snapshot (k3s snapshot restore), or delete the row that is wrong with sqlite3"
    )]
    DuplicateRow {
        /// The database file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Their common `prev_revision`.
        previous: i64,
    },
    /// The address to listen on is not understood or not allowed.
    #[error("cannot listen on {address:?}: {reason}")]
    Address {
        /// What was asked for.
        address: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A certificate or key cannot be used.
    #[error("cannot use {path} for TLS: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The writer met a bug of its own; its panic is in the log. Nothing acknowledged is lost.
    #[error("the writer of the datastore {0} has crashed; restart it, and report the panic in the log")]
    Crashed(PathBuf),
    /// The store has been closed.
    #[error("the datastore is closed")]
    Closed,
}

impl Error {
    /// The exit code of a process that ends with this, from sysexits.h.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotAFile { .. }
            | Self::NotADatabase(_)
            | Self::Foreign { .. }
            | Self::Damaged { .. }
            | Self::MissingDatabase(_)
            | Self::MissingLog(_)
            | Self::LostCommits { .. }
            | Self::Newer { .. }
            | Self::DuplicateRow { .. } => ExitCode::DataErr,
            Self::InUse { .. } | Self::ForeignWriter(_) => ExitCode::TempFail,
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => ExitCode::NoPerm,
            Self::File { .. } | Self::Sqlite { .. } => ExitCode::IoErr,
            Self::Address { .. } | Self::Tls { .. } => ExitCode::Config,
            Self::Crashed(_) | Self::Closed => ExitCode::Software,
        }
    }

    pub(crate) fn address(address: &str, reason: &str) -> Self {
        Self::Address { address: address.to_owned(), reason: reason.to_owned() }
    }

    pub(crate) fn tls(path: &Path, reason: &impl ToString) -> Self {
        Self::Tls { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source: Arc::new(source) }
    }
}

const READ_ONLY: &str = "; it has to be writable: remount the file system, or see to owner and mode";
const FULL: &str = "; make room on its file system";

fn io_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => READ_ONLY,
        io::ErrorKind::PermissionDenied => "; it has to belong to the user that this runs as: see to owner and mode",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FULL,
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "; a file is where a directory has to be",
        _ => "",
    }
}

fn sqlite_remedy(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly) => READ_ONLY,
        Some(ErrorCode::DiskFull) => FULL,
        Some(ErrorCode::SystemIoFailure) => "; the disk may be failing: see the kernel's log",
        _ => "",
    }
}

fn process(holder: Option<i32>) -> String {
    holder.map_or("another process".to_owned(), |pid| format!("process {pid}"))
}

/// Why one request was refused. Texts and codes are etcd's (`api/v3rpc/rpctypes/error.go`): clients compare them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// The key is one that the table keeps for itself.
    #[error("etcdserver: key {0:?} is reserved")]
    ReservedKey(String),
    /// Something that etcd can do and this store cannot; says what and why.
    #[error("not supported by this datastore: {0}")]
    Unsupported(String),
    /// The log could not be read.
    #[error("etcdserver: storage failed: {0}")]
    Storage(String),
    /// The store has stopped or is stopping.
    #[error("etcdserver: server stopped: {0}")]
    Stopped(String),
}
