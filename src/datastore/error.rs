//! What can go wrong: with the store as a whole, and with one request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the store cannot be opened, or has stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the store could not be used.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// SQLite refused an operation.
    #[error("cannot {action} the database {path}: {source}")]
    Sqlite {
        /// What was tried, as a verb.
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<rusqlite::Error>,
    },
    /// The file is not an SQLite database.
    #[error("{0} is not an SQLite database; it is left as it is: move it away to start with an empty store")]
    NotADatabase(PathBuf),
    /// The integrity check after an unclean stop found damage.
    #[error(
        "the database {path} is damaged: {finding}; nothing was changed: keep a copy of it and of the files beside it, \
         then restore a snapshot, or move it away to start with an empty store"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What the check reported first.
        finding: String,
    },
    /// The file was written by a newer version of this program.
    #[error("the database {path} has format {found}, this program knows up to {known}: use the newer program")]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Format number in the file.
        found: i64,
        /// Newest format number that is understood.
        known: i64,
    },
    /// Another process has the database open.
    #[error("the database {0} is in use by another process: stop that one first")]
    InUse(PathBuf),
    /// Somebody else has written to the database while we served it.
    #[error(
        "the database {0} was changed by another program while it was in use here; writing has stopped to keep the \
         revisions in order: stop the other program (kine or k3s?) and start this one again"
    )]
    ForeignWriter(PathBuf),
    /// Two rows claim the same place in a key's history.
    #[error("the database {path} has two rows for key {key:?} after revision {previous}: kine would refuse it")]
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
