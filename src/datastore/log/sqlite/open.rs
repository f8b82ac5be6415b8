//! Opening: what is not ours or not sound is refused before anything in it changes.
//!
//! ```text
//! files, their lock ─► how the last stop was ─► SQLite: schema, integrity, scan ─► from here on we write:
//!                                                               settings, our form of the tables, the mark
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tracing::info;

use super::files::Files;
use super::reader::Reader;
use super::recover::{Recovered, Scan};
use super::schema::{self, Schema};
use super::space::WAL_BYTES;
use super::unclean::{self, Stop};
use super::{SqliteLog, at};
use crate::error::Error;

/// Page size of a new file; the module above says why.
const PAGE_BYTES: i64 = 512;
/// `PRAGMA auto_vacuum` of a file that gives pages back when it is told to.
pub(super) const INCREMENTAL: i64 = 2;
/// That of one that gives them back at each commit.
pub(super) const FULL: i64 = 1;
/// How long to wait for somebody else who locks the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

impl SqliteLog {
    /// As [`SqliteLog::open_with_vfs`], by SQLite's own VFS.
    pub(crate) fn open(path: &Path) -> Result<(Self, Recovered), Error> {
        Self::open_with_vfs(path, None)
    }

    /// Opens or creates the database, through SQLite's VFS of this name if not the default one, and reads what it
    /// holds. Checks its integrity after an unclean stop.
    pub(crate) fn open_with_vfs(path: &Path, vfs: Option<&str>) -> Result<(Self, Recovered), Error> {
        let files = Files::prepare(path)?;
        let stop = unclean::examine(&files)?;
        let path = files.database.as_path();

        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = connect(path, flags, vfs)?;
        // Only a clean close may move the write-ahead log into the file and remove it.
        hold_back_checkpoint(&connection, true).map_err(unusable("configure", path))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(unusable("configure", path))?;
        let schema = Schema::read(&connection, path)?;
        if stop == Stop::Unclean {
            check_integrity(&connection, path)?;
        }
        let page_size = configure(&connection, schema).map_err(unusable("configure", path))?;

        let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate);
        let transaction = transaction.map_err(unusable("lock", path))?;
        let mut scan = Scan::read(&transaction, path, schema)?;
        let compact_row = schema::migrate(&transaction, path, &mut scan).map_err(unusable("prepare", path))?;
        transaction.commit().map_err(unusable("prepare", path))?;
        use_wal(&connection).map_err(unusable("prepare", path))?;
        files.mark_open()?;
        let mut log = Self {
            path: path.to_owned(),
            vfs: vfs.map(str::to_owned),
            data_version: 0,
            compact_row,
            newest_row: scan.newest_row,
            gaps: std::mem::take(&mut scan.gaps),
            page_size,
            incremental: false,
            in_transaction: false,
            connection,
            files,
        };
        log.data_version = log.query("PRAGMA data_version", 0)?;
        let mut vacuum = log.query("PRAGMA auto_vacuum", 0)?;
        if vacuum == FULL {
            // A crash while it shrank left it so: each commit would move pages.
            let set = log.connection.pragma_update(None, "auto_vacuum", INCREMENTAL);
            set.map_err(unusable("prepare", &log.path))?;
            vacuum = INCREMENTAL;
        }
        log.incremental = vacuum == INCREMENTAL;
        Ok((log, scan.recovered()))
    }

    /// Opens another connection to the same file that only reads.
    pub(crate) fn reader(&self) -> Result<Reader, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = connect(&self.path, flags, self.vfs.as_deref())?;
        connection.pragma_update(None, "cache_size", -512).map_err(at("configure", &self.path))?;
        Ok(Reader { connection, path: self.path.clone() })
    }
}

fn connect(path: &Path, flags: OpenFlags, vfs: Option<&str>) -> Result<Connection, Error> {
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs),
        None => Connection::open_with_flags(path, flags),
    };
    connection.map_err(unusable("open", path))
}

/// Whether closing the connection leaves the write-ahead log as it is.
pub(super) fn hold_back_checkpoint(connection: &Connection, held: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, held).map(drop)
}

/// Reads each page once, values too.
fn check_integrity(connection: &Connection, path: &Path) -> Result<(), Error> {
    info!(path = %path.display(), "The datastore was not stopped properly; checking its integrity.");
    let started = Instant::now();
    let check = || connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match check().map_err(unusable("check", path))? {
        finding if finding == "ok" => {
            info!(seconds = started.elapsed().as_secs_f32(), "The datastore is sound.");
            Ok(())
        }
        // Below a line that names the database.
        finding => {
            let finding = finding.lines().last().unwrap_or_default().to_owned();
            Err(Error::Damaged { path: path.to_owned(), finding })
        }
    }
}

/// Sets up the connection, and the file if it is new. Returns the page size.
fn configure(connection: &Connection, schema: Schema) -> rusqlite::Result<i64> {
    if !schema.kine {
        // Only heard by a file that is still empty.
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        use_wal(connection)?;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", 2 * WAL_BYTES)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.query_row("PRAGMA page_size", [], |row| row.get(0))
}

fn use_wal(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")
}

/// What a failure to open means.
pub(super) fn unusable(action: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Error {
    let path = path.to_owned();
    move |source| match &source {
        // A value of a type that neither kine nor we write.
        rusqlite::Error::InvalidColumnType(..) => Error::Damaged { path, finding: source.to_string() },
        _ => match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Error::NotADatabase(path),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::InUse { path, holder: None },
            Some(ErrorCode::DatabaseCorrupt) => Error::Damaged { path, finding: source.to_string() },
            _ => Error::Sqlite { action, path, source: Arc::new(source) },
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::files::beside;
    use super::*;
    use crate::revision::Revision;

    #[test]
    fn a_new_file_is_private_and_begins_at_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server/db/state.db");
        let (log, recovered) = SqliteLog::open(&path).unwrap();
        assert_eq!((recovered.head, recovered.compacted), (Revision(1), Revision::ZERO));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&beside(&path, "-wal")), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(log.incremental && log.page_size == PAGE_BYTES);
        log.close().unwrap();
        assert!(!beside(&path, "-wal").exists());
    }
}
