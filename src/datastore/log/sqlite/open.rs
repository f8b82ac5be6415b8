//! Opening: refuse what is not ours or not sound before anything in it changes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing::info;

use super::files::{self, beside};
use super::reader::Reader;
use super::recover::Recovered;
use super::schema::{self, FORMAT};
use super::space::WAL_BYTES;
use super::{SqliteLog, at};
use crate::error::Error;
use crate::revision::Revision;

/// How long to wait for somebody else who locks the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

impl SqliteLog {
    #[cfg(test)]
    pub(crate) fn open(path: &Path) -> Result<(Self, Recovered), Error> {
        Self::open_with_vfs(path, None)
    }

    /// Opens or creates the database, through SQLite's VFS of this name if not the default one, and reads what it
    /// holds. Checks its integrity after an unclean stop.
    pub(crate) fn open_with_vfs(path: &Path, vfs: Option<&str>) -> Result<(Self, Recovered), Error> {
        let lock = files::prepare(path)?;
        // SQLite removes the write-ahead log when the last user closes the database properly.
        let unclean = fs::metadata(beside(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = connect(path, flags, vfs)?;
        // Until it is known to be sound nothing is moved into the file, not even at its closing.
        hold_back_checkpoint(&connection, path, true)?;
        check_format(&connection, path)?;
        if unclean {
            info!(path = %path.display(), "The datastore was not stopped properly; checking its integrity.");
            check_integrity(&connection, path)?;
        }
        let page_size = configure(&connection).map_err(unusable("configure", path))?;
        let incremental = schema::migrate(&connection, path).map_err(unusable("prepare", path))?;
        let mut log = Self {
            connection,
            path: path.to_owned(),
            vfs: vfs.map(str::to_owned),
            data_version: 0,
            compact_row: 0,
            newest_row: Revision::ZERO,
            gaps: Vec::new(),
            page_size,
            incremental,
            in_transaction: false,
            _lock: lock,
        };
        let recovered = log.recover().map_err(unusable("read", path))??;
        log.data_version = log.read_data_version()?;
        hold_back_checkpoint(&log.connection, path, false)?;
        Ok((log, recovered))
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
    connection.map_err(at("open", path))
}

fn hold_back_checkpoint(connection: &Connection, path: &Path, held: bool) -> Result<(), Error> {
    let held = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, held);
    held.map(drop).map_err(at("configure", path))
}

/// Refuses a file that is no database, or one that a newer program has written.
fn check_format(connection: &Connection, path: &Path) -> Result<(), Error> {
    let read = || {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.query_row("PRAGMA user_version", [], |row| row.get(0))
    };
    match read().map_err(unusable("read", path))? {
        found if found > FORMAT => Err(Error::Newer { path: path.to_owned(), found, known: FORMAT }),
        _ => Ok(()),
    }
}

fn check_integrity(connection: &Connection, path: &Path) -> Result<(), Error> {
    let check = || connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match check().map_err(unusable("check", path))? {
        finding if finding == "ok" => Ok(()),
        finding => Err(Error::Damaged { path: path.to_owned(), finding }),
    }
}

/// Sets up the connection, and the file if it is new. Returns the page size.
fn configure(connection: &Connection) -> rusqlite::Result<i64> {
    // Page size and vacuum mode are only heard by a file that is still empty.
    connection.pragma_update(None, "page_size", 1024)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", 2 * WAL_BYTES)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.query_row("PRAGMA page_size", [], |row| row.get(0))
}

/// What a failure to open means.
fn unusable(action: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Error {
    let path = path.to_owned();
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::NotADatabase(path),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::InUse(path),
        Some(ErrorCode::DatabaseCorrupt) => Error::Damaged { path, finding: source.to_string() },
        _ => Error::Sqlite { action, path, source: Arc::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;

    use super::super::fixture::key;
    use super::*;
    use crate::index::Entry;
    use crate::revision::LeaseId;
    use crate::txn::Row;

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
        assert!(log.incremental && log.page_size == 1024);
        log.close().unwrap();
        assert!(!beside(&path, "-wal").exists());
    }

    #[test]
    fn a_second_opener_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let _first = SqliteLog::open(&path).unwrap();
        assert!(matches!(SqliteLog::open(&path), Err(Error::InUse(_))));
    }

    #[test]
    fn what_cannot_be_opened_is_named_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let refused = |path: &Path| SqliteLog::open(path).map(drop).unwrap_err();

        fs::write(&path, "this is no database, but long enough to have a header ".repeat(20)).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(refused(&path), Error::NotADatabase(_)));
        assert!(fs::read(&path).unwrap() == before);

        fs::remove_file(&path).unwrap();
        SqliteLog::open(&path).unwrap().0.close().unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", FORMAT + 1).unwrap();
        assert!(matches!(refused(&path), Error::Newer { found: 2, known: 1, .. }));

        let under_a_file = path.join("state.db");
        let text = refused(&under_a_file).to_string();
        assert!(text.contains("state.db"), "{text}");
    }

    #[test]
    fn damage_is_found_after_an_unclean_stop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let (mut log, _) = SqliteLog::open(&path).unwrap();
        for revision in 2..200 {
            let entry =
                Entry { modified: Revision(revision), created: Revision(revision), version: 1, lease: LeaseId::NONE };
            let value = Some(Bytes::from(vec![b'v'; 700]));
            let row = Row { key: key(&format!("/k{revision}")), entry, previous: Revision::ZERO, value };
            log.append(&row, 0).unwrap();
        }
        log.commit(Revision(199)).unwrap();
        log.query("PRAGMA wal_checkpoint(TRUNCATE)", 0).unwrap();
        log.put_lease(LeaseId(1), 60, true).unwrap();
        log.commit(Revision::ZERO).unwrap();

        // As a crash leaves it: copied while it was open. Then a page rots.
        let crashed = directory.path().join("crashed.db");
        let mut bytes = fs::read(&path).unwrap();
        let page = bytes.len() / 2 / 1024 * 1024;
        bytes[page..page + 1024].fill(0xa5);
        fs::write(&crashed, &bytes).unwrap();
        fs::copy(beside(&path, "-wal"), beside(&crashed, "-wal")).unwrap();
        match SqliteLog::open(&crashed) {
            Err(Error::Damaged { path, .. }) => assert_eq!(path, crashed),
            other => panic!("should have found the damage, not {:?}", other.map(|(_, recovered)| recovered)),
        }
        assert!(fs::read(&crashed).unwrap() == bytes, "a damaged file is left as it is");

        // The same without damage opens, with the last commit that was only in the write-ahead log.
        let sound = directory.path().join("sound.db");
        fs::copy(&path, &sound).unwrap();
        fs::copy(beside(&path, "-wal"), beside(&sound, "-wal")).unwrap();
        let (_, recovered) = SqliteLog::open(&sound).unwrap();
        assert_eq!((recovered.head, recovered.leases.len()), (Revision(199), 1));
    }
}
