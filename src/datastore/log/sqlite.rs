//! The log in an SQLite file.
//!
//! A commit is on the disk when it returns (`synchronous=FULL`), and a commit is one `fsync` however many rows it has.
//! There are no indexes while we run: their pages are most of what kine writes; the index is in memory.
//!
//! A new file has pages of 1024 bytes, no AUTOINCREMENT and incremental vacuum. Bytes written for one row of 1500 bytes
//! committed alone, log and table together (the value itself is written twice): 11.7 kB; with 4096-byte pages and
//! AUTOINCREMENT 20.7 kB; without vacuum 10.5 kB, but then a file that has grown stays so until it is rewritten.
//! A file from kine keeps its settings. kine recreates its indexes when it opens the file again.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};
use tracing::{info, warn};

use super::kine;
use crate::error::Error;
use crate::index::{Entry, Index};
use crate::key::Key;
use crate::revision::{LeaseId, Revision};
use crate::txn::Row;

/// Format of our own tables and columns, in `PRAGMA user_version`; kine leaves it zero.
const FORMAT: i64 = 1;
/// How long to wait for somebody else who locks the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of the write-ahead log at which it is copied into the table, in bytes.
const WAL_BYTES: i64 = 4 << 20;
/// Free pages are given back to the file system when they are more than this part of the file…
const FREE_PART: i64 = 4;
/// …and more than this, in bytes: smaller holes are soon filled again.
const FREE_BYTES: i64 = 4 << 20;
/// A step of that: it holds writers up.
const VACUUM_STEP: &str = "PRAGMA incremental_vacuum(256)";

const CREATE_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS kine (
        id INTEGER PRIMARY KEY,
        name TEXT,
        created INTEGER,
        deleted INTEGER,
        create_revision INTEGER,
        prev_revision INTEGER,
        lease INTEGER,
        value BLOB,
        old_value BLOB,
        version INTEGER,
        lease_id INTEGER
    );
    CREATE TABLE IF NOT EXISTS k3s_lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL, expires INTEGER);";

const INSERT: &str = "
    INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value, version, lease_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

/// What a file holds when it is opened.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) index: Index,
    /// The newest revision: the next one has never been given out.
    pub(crate) head: Revision,
    pub(crate) compacted: Revision,
    pub(crate) leases: Vec<StoredLease>,
}

/// A lease in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredLease {
    pub(crate) id: LeaseId,
    /// Seconds that it was granted for.
    pub(crate) ttl: i64,
    /// Seconds that are left; `None` if it starts again with its full time.
    pub(crate) remaining: Option<i64>,
}

/// Sizes of the database file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Bytes of the file.
    pub(crate) total: i64,
    /// Bytes of it that hold data.
    pub(crate) in_use: i64,
}

/// The one connection that writes.
pub(crate) struct SqliteLog {
    connection: Connection,
    path: PathBuf,
    /// `PRAGMA data_version` of our last look: any other value means that somebody else has written.
    data_version: i64,
    compact_row: i64,
    newest_row: Revision,
    /// Rows that only fill gaps, to go with the next compaction.
    gaps: Vec<i64>,
    page_size: i64,
    incremental: bool,
    in_transaction: bool,
    /// Held for as long as the database is open.
    _lock: File,
}

/// A connection that only reads.
pub(crate) struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl SqliteLog {
    /// Opens or creates the database and reads what it holds. Checks its integrity after an unclean stop.
    pub(crate) fn open(path: &Path) -> Result<(Self, Recovered), Error> {
        let lock = prepare_files(path)?;
        // SQLite removes the write-ahead log when the last user closes the database properly.
        let unclean = fs::metadata(beside(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(at("open", path))?;
        // Until it is known to be sound nothing is moved into the file, not even at its closing.
        hold_back_checkpoint(&connection, path, true)?;
        check_format(&connection, path)?;
        if unclean {
            info!(path = %path.display(), "The datastore was not stopped properly; checking its integrity.");
            check_integrity(&connection, path)?;
        }
        let page_size = configure(&connection).map_err(unusable("configure", path))?;
        let incremental = migrate(&connection, path).map_err(unusable("prepare", path))?;
        let mut log = Self {
            connection,
            path: path.to_owned(),
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
        let connection = Connection::open_with_flags(&self.path, flags).map_err(at("open", &self.path))?;
        connection.pragma_update(None, "cache_size", -512).map_err(at("configure", &self.path))?;
        Ok(Reader { connection, path: self.path.clone() })
    }

    /// Adds a row to the transaction at hand. `ttl` is the time to live of its lease in seconds, zero for none.
    pub(crate) fn append(&mut self, row: &Row, ttl: i64) -> Result<(), Error> {
        self.begin()?;
        let Row { key, entry, previous, value } = row;
        let created = entry.created == entry.modified;
        let create_revision = if created { Revision::ZERO } else { entry.created };
        let value = value.as_ref().map(|value| kine::encode_value(key, entry.version, value));
        let lease_id = (!entry.lease.is_none()).then_some(entry.lease.0);
        self.execute(
            "append to",
            INSERT,
            params![
                entry.modified.0,
                Name(kine::name_of(key)),
                created,
                entry.is_tombstone(),
                create_revision.0,
                previous.0,
                ttl,
                value.as_deref(),
                entry.version,
                lease_id
            ],
        )
    }

    /// Adds a lease to the transaction at hand, or replaces it; `lasts` is false once it was renewed.
    pub(crate) fn put_lease(&mut self, id: LeaseId, ttl: i64, lasts: bool) -> Result<(), Error> {
        self.begin()?;
        let expires = lasts.then(|| unix_now().saturating_add(ttl));
        self.execute(
            "append to",
            "INSERT OR REPLACE INTO k3s_lease (id, ttl, expires) VALUES (?1, ?2, ?3)",
            params![id.0, ttl, expires],
        )
    }

    /// Removes a lease in the transaction at hand.
    pub(crate) fn delete_lease(&mut self, id: LeaseId) -> Result<(), Error> {
        self.begin()?;
        self.execute("append to", "DELETE FROM k3s_lease WHERE id = ?1", [id.0])
    }

    /// Sets the compacted revision in the transaction at hand.
    pub(crate) fn set_compacted(&mut self, revision: Revision) -> Result<(), Error> {
        self.begin()?;
        let row = self.compact_row;
        self.execute("compact", "UPDATE kine SET prev_revision = ?1 WHERE id = ?2", [revision.0, row])
    }

    /// Deletes compacted rows in the transaction at hand, in this order, and the gap rows up to `compacted`.
    pub(crate) fn delete(&mut self, revisions: &[Revision], compacted: Revision) -> Result<(), Error> {
        let newest = self.newest_row.0;
        let (old, kept): (Vec<_>, _) =
            std::mem::take(&mut self.gaps).into_iter().partition(|&id| id < compacted.0 && id < newest);
        self.gaps = kept;
        for id in old.into_iter().chain(revisions.iter().map(|revision| revision.0)) {
            self.begin()?;
            self.execute("compact", "DELETE FROM kine WHERE id = ?1", [id])?;
        }
        Ok(())
    }

    /// Makes the transaction at hand durable; nothing to do if there is none. `newest` is the largest row id by now.
    pub(crate) fn commit(&mut self, newest: Revision) -> Result<(), Error> {
        if self.in_transaction {
            self.execute("commit to", "COMMIT", [])?;
            self.in_transaction = false;
            self.newest_row = self.newest_row.max(newest);
        }
        Ok(())
    }

    /// Drops the transaction at hand.
    pub(crate) fn rollback(&mut self) {
        if std::mem::take(&mut self.in_transaction)
            && !self.connection.is_autocommit()
            && let Err(error) = self.execute("roll back", "ROLLBACK", [])
        {
            warn!(%error, "A transaction could not be rolled back.");
        }
    }

    /// The value of a row, also of one that the transaction at hand has added.
    pub(crate) fn value(&self, key: &Key, revision: Revision) -> Result<Option<Bytes>, Error> {
        value(&self.connection, key, revision).map_err(at("read", &self.path))
    }

    /// The largest row id.
    pub(crate) fn newest_row(&self) -> Revision {
        self.newest_row
    }

    /// Copies the write-ahead log into the table once it is long enough; readers are not held up.
    pub(crate) fn checkpoint_if_due(&self) -> Result<(), Error> {
        let frames: i64 = self.query("PRAGMA wal_checkpoint(NOOP)", 1)?;
        if frames.saturating_mul(self.page_size) >= WAL_BYTES {
            self.query("PRAGMA wal_checkpoint(PASSIVE)", 1)?;
        }
        Ok(())
    }

    /// Gives free pages back to the file system, a bounded number at a time, if there are many. Returns whether there
    /// are more to give.
    pub(crate) fn shrink(&mut self) -> Result<bool, Error> {
        if !self.incremental {
            return Ok(false);
        }
        let free = self.free_pages()?;
        let all = self.query("PRAGMA page_count", 0)?;
        if free * FREE_PART < all || free * self.page_size < FREE_BYTES {
            return Ok(false);
        }
        self.vacuum_step()?;
        Ok(true)
    }

    /// Gives all free pages back. A file from kine is rewritten for that.
    pub(crate) fn defragment(&mut self) -> Result<(), Error> {
        self.check_foreign_writer()?;
        if self.incremental {
            // In steps, so that the write-ahead log stays short however large the file is.
            while self.free_pages()? > 0 {
                self.vacuum_step()?;
                self.checkpoint_if_due()?;
            }
        } else {
            self.connection.execute_batch("VACUUM").map_err(at("rewrite", &self.path))?;
        }
        self.query("PRAGMA wal_checkpoint(TRUNCATE)", 0)?;
        Ok(())
    }

    /// Checks what kine would refuse, moves everything into the table and closes the file.
    pub(crate) fn close(mut self) -> Result<(), Error> {
        self.rollback();
        let duplicate = self.duplicate_row().map_err(at("check", &self.path))?;
        let path = self.path;
        self.connection.close().map_err(|(_, source)| at("close", &path)(source))?;
        match duplicate {
            Some((key, previous)) => Err(Error::DuplicateRow { path, key, previous }),
            None => Ok(()),
        }
    }

    /// A name and `prev_revision` that two rows share.
    fn duplicate_row(&self) -> rusqlite::Result<Option<(String, i64)>> {
        // Hashes, since the names of a large table would not fit in memory; equal ones also need equal predecessors.
        let hasher = RandomState::new();
        let mut seen = HashSet::new();
        let mut statement = self.connection.prepare("SELECT name, prev_revision FROM kine")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref(0)?.as_bytes_or_null()?.unwrap_or_default();
            let previous = row.get::<_, Option<i64>>(1)?.unwrap_or_default();
            if !seen.insert((hasher.hash_one(name), previous)) {
                return Ok(Some((String::from_utf8_lossy(name).into_owned(), previous)));
            }
        }
        Ok(None)
    }

    fn begin(&mut self) -> Result<(), Error> {
        if self.in_transaction {
            return Ok(());
        }
        self.execute("lock", "BEGIN IMMEDIATE", [])?;
        self.in_transaction = true;
        // With the write lock held, so that nobody can come in between.
        self.check_foreign_writer()
    }

    fn check_foreign_writer(&self) -> Result<(), Error> {
        if self.read_data_version()? == self.data_version {
            Ok(())
        } else {
            Err(Error::ForeignWriter(self.path.clone()))
        }
    }

    fn read_data_version(&self) -> Result<i64, Error> {
        self.query("PRAGMA data_version", 0)
    }

    fn free_pages(&self) -> Result<i64, Error> {
        self.query("PRAGMA freelist_count", 0)
    }

    fn vacuum_step(&self) -> Result<(), Error> {
        let run = || {
            let mut statement = self.connection.prepare_cached(VACUUM_STEP)?;
            let mut rows = statement.query([])?;
            // One row is one page.
            while rows.next()?.is_some() {}
            Ok(())
        };
        run().map_err(at("shrink", &self.path))
    }

    fn execute(&self, action: &'static str, sql: &str, params: impl rusqlite::Params) -> Result<(), Error> {
        let run = || self.connection.prepare_cached(sql)?.execute(params);
        run().map(drop).map_err(at(action, &self.path))
    }

    fn query(&self, sql: &str, column: usize) -> Result<i64, Error> {
        let run = || self.connection.prepare_cached(sql)?.query_row([], |row| row.get(column));
        run().map_err(at("query", &self.path))
    }

    /// Reads all rows but their values. The outer error is SQLite's.
    fn recover(&mut self) -> rusqlite::Result<Result<Recovered, Error>> {
        let mut leases = self.stored_leases()?;
        let mut index = Index::default();
        let mut compact_rows = Vec::new();
        let mut head = 0;
        {
            let mut statement = self.connection.prepare(
                "SELECT id, name, created, deleted, create_revision, prev_revision, lease, version, lease_id,
                        CASE WHEN name = 'compact_rev_key_apiserver' THEN value END
                 FROM kine ORDER BY id",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let number = |column| row.get::<_, Option<i64>>(column).map(Option::unwrap_or_default);
                let (created, deleted) = (number(2)? != 0, number(3)? != 0);
                let (create_revision, prev_revision, ttl) = (number(4)?, number(5)?, number(6)?);
                let name = match row.get_ref(1)? {
                    ValueRef::Text(name) | ValueRef::Blob(name) if !name.is_empty() => name,
                    _ => {
                        let finding = format!("row {id} has no name");
                        return Ok(Err(Error::Damaged { path: self.path.clone(), finding }));
                    }
                };
                head = id;
                if name == kine::COMPACT_ROW.as_bytes() {
                    compact_rows.push((prev_revision, id));
                    continue;
                }
                if kine::is_gap(id, name, deleted, prev_revision) {
                    self.gaps.push(id);
                    continue;
                }
                let key = kine::key_of(name);
                let modified = Revision(id);
                if deleted {
                    index.push(&key, Entry::tombstone(modified));
                    continue;
                }
                let before = index.newest(&key).filter(|entry| !created && !entry.is_tombstone());
                let in_value = || match row.get_ref(9) {
                    Ok(ValueRef::Blob(value) | ValueRef::Text(value)) => kine::version_in_value(&key, value),
                    _ => None,
                };
                let version = match row.get::<_, Option<i64>>(7)? {
                    Some(version) => version,
                    None => in_value().unwrap_or_else(|| before.map_or(0, |entry| entry.version) + 1),
                };
                let lease = match row.get::<_, Option<i64>>(8)? {
                    Some(lease) => LeaseId(lease),
                    // A row of kine's has a time to live and no lease: it is its own.
                    None if ttl > 0 => LeaseId(id),
                    None => LeaseId::NONE,
                };
                if !lease.is_none() {
                    leases.entry(lease).or_insert(StoredLease { id: lease, ttl, remaining: None });
                }
                let created = match (created, create_revision) {
                    (true, _) => modified,
                    (false, 1..) => Revision(create_revision),
                    (false, _) => before.map_or(modified, |entry| entry.created),
                };
                index.push(&key, Entry { modified, created, version: version.max(1), lease });
            }
        }
        self.newest_row = Revision(head);
        let sequence = self.autoincrement_sequence()?;
        let compacted = compact_rows.iter().map(|(revision, _)| *revision).max().unwrap_or(0);
        let mut head = Revision(head.max(sequence).max(compacted));
        self.keep_one_compact_row(&mut compact_rows, &mut head)?;
        Ok(Ok(Recovered { index, head, compacted: Revision(compacted), leases: leases.into_values().collect() }))
    }

    /// kine wants exactly one such row, and had a bug that wrote two: the one with the largest revision counts.
    fn keep_one_compact_row(&mut self, rows: &mut Vec<(i64, i64)>, head: &mut Revision) -> rusqlite::Result<()> {
        rows.sort_unstable();
        let Some((_, keep)) = rows.pop() else {
            *head = head.next();
            self.connection.execute(
                "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value)
                 VALUES (?1, ?2, 1, 0, 0, 0, 0, x'')",
                params![head.0, kine::COMPACT_ROW],
            )?;
            self.compact_row = head.0;
            self.newest_row = *head;
            return Ok(());
        };
        self.compact_row = keep;
        for (_, id) in rows.drain(..).filter(|(_, id)| *id != self.newest_row.0) {
            self.connection.execute("DELETE FROM kine WHERE id = ?1", [id])?;
        }
        Ok(())
    }

    fn stored_leases(&self) -> rusqlite::Result<HashMap<LeaseId, StoredLease>> {
        let now = unix_now();
        let mut statement = self.connection.prepare("SELECT id, ttl, expires FROM k3s_lease")?;
        let leases = statement.query_map([], |row| {
            let (id, ttl) = (LeaseId(row.get(0)?), row.get(1)?);
            let expires: Option<i64> = row.get(2)?;
            // A clock that went back must not make a lease longer than it was granted.
            let remaining = expires.map(|expires| expires.saturating_sub(now).clamp(0, ttl));
            Ok((id, StoredLease { id, ttl, remaining }))
        })?;
        leases.collect()
    }

    /// The largest id that SQLite has given out itself; zero if the table does not count.
    fn autoincrement_sequence(&self) -> rusqlite::Result<i64> {
        let counts: bool = self.connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence')",
            [],
            |row| row.get(0),
        )?;
        if !counts {
            return Ok(0);
        }
        let sequence = self
            .connection
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'kine'", [], |row| row.get(0))
            .optional()?;
        Ok(sequence.unwrap_or(0))
    }
}

impl Reader {
    /// The values of rows, in their order; `None` for a row that compaction has deleted.
    pub(crate) fn values(&self, rows: &[(Key, Revision)]) -> Result<Vec<Option<Bytes>>, Error> {
        let read = || {
            // One read transaction for all, instead of a lock and an unlock for each.
            let snapshot = self.connection.unchecked_transaction()?;
            let values =
                rows.iter().map(|(key, revision)| value(&snapshot, key, *revision)).collect::<rusqlite::Result<_>>()?;
            snapshot.finish()?;
            Ok(values)
        };
        read().map_err(at("read", &self.path))
    }

    pub(crate) fn size(&self) -> Result<Size, Error> {
        let query = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let read = || {
            let page = query("PRAGMA page_size")?;
            let pages = query("PRAGMA page_count")?;
            let free = query("PRAGMA freelist_count")?;
            Ok(Size { total: pages * page, in_use: (pages - free) * page })
        };
        read().map_err(at("query", &self.path))
    }
}

/// Whether an error says that there is no room on the file system.
pub(crate) fn is_full(error: &Error) -> bool {
    code(error) == Some(ErrorCode::DiskFull)
}

/// Whether an error says that somebody else holds the database's lock; it passes.
pub(crate) fn is_busy(error: &Error) -> bool {
    code(error) == Some(ErrorCode::DatabaseBusy)
}

fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::Sqlite { source, .. } => source.sqlite_error_code(),
        _ => None,
    }
}

/// A name in the table: text where it can be, as kine compares text.
struct Name<'a>(&'a [u8]);

impl rusqlite::ToSql for Name<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = if std::str::from_utf8(self.0).is_ok() { ValueRef::Text(self.0) } else { ValueRef::Blob(self.0) };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// Makes the directory and the file, private to us, and takes the lock against a second process of ours.
fn prepare_files(path: &Path) -> Result<File, Error> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("create the directory", directory))?;
    let lock_path = beside(path, "-lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(Error::file("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => return Err(Error::file("lock", &lock_path)(source)),
    }
    // SQLite gives the files beside the database the mode of the database.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(created) => {
            created.sync_all().map_err(Error::file("sync", path))?;
            let sync = File::open(directory).and_then(|directory| directory.sync_all());
            sync.map_err(Error::file("sync the directory", directory))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::file("create", path)(error)),
    }
    Ok(lock)
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

/// Brings the tables to our form; keeps everything that kine needs. Returns whether the file can shrink by itself.
fn migrate(connection: &Connection, path: &Path) -> rusqlite::Result<bool> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(CREATE_TABLE)?;
    for column in ["version", "lease_id"] {
        let there: bool = transaction.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_table_info('kine') WHERE name = ?1)",
            [column],
            |row| row.get(0),
        )?;
        if !there {
            transaction.execute_batch(&format!("ALTER TABLE kine ADD COLUMN {column} INTEGER"))?;
        }
    }
    let indexes: Vec<String> = transaction
        .prepare("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'kine' AND sql IS NOT NULL")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for index in &indexes {
        transaction.execute_batch(&format!("DROP INDEX \"{}\"", index.replace('"', "\"\"")))?;
    }
    if !indexes.is_empty() {
        info!(path = %path.display(), indexes = indexes.len(), "Took over a database of kine's; dropped its indexes.");
    }
    let format: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if format != FORMAT {
        transaction.pragma_update(None, "user_version", FORMAT)?;
    }
    transaction.commit()?;
    connection.query_row("PRAGMA auto_vacuum", [], |row| row.get::<_, i64>(0)).map(|mode| mode == 2)
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

fn value(connection: &Connection, key: &Key, revision: Revision) -> rusqlite::Result<Option<Bytes>> {
    connection
        .prepare_cached("SELECT value FROM kine WHERE id = ?1")?
        .query_row([revision.0], |row| {
            Ok(match row.get_ref(0)? {
                ValueRef::Blob(value) | ValueRef::Text(value) => kine::decode_value(key, value),
                _ => Bytes::new(),
            })
        })
        .optional()
}

/// The path of a file that lies beside the database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Sqlite { action, path, source: Arc::new(source) }
}

/// Seconds since 1970 by the system's clock.
fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;

    /// What kine 0.16 executes when it starts.
    const KINE_SCHEMA: &str = "
        CREATE TABLE IF NOT EXISTS kine (
            id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
            create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
        CREATE INDEX IF NOT EXISTS kine_name_index ON kine (name);
        CREATE INDEX IF NOT EXISTS kine_name_id_index ON kine (name, id);
        CREATE INDEX IF NOT EXISTS kine_id_deleted_index ON kine (id, deleted);
        CREATE INDEX IF NOT EXISTS kine_prev_revision_index ON kine (prev_revision);
        CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision_uindex ON kine (name, prev_revision);
        CREATE INDEX IF NOT EXISTS kine_id_compact_rev_key_with_prev_revision_index ON kine (id, name, prev_revision)
            WHERE name != 'compact_rev_key' AND prev_revision != 0;";

    /// A database as kine leaves it in mid-life: compacted to 5, with a gap, a lease, and apiserver's compact key.
    fn kines_database() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let kine = Connection::open(&path).unwrap();
        kine.pragma_update(None, "journal_mode", "WAL").unwrap();
        kine.execute_batch(KINE_SCHEMA).unwrap();
        kine.execute_batch(
            "INSERT INTO kine VALUES
                (1, 'compact_rev_key', 1, 0, 0, 5, 0, x'', NULL),
                (2, '/registry/health', 1, 0, 0, 0, 0, '{\"health\":\"true\"}', NULL),
                (5, '/registry/a', 0, 0, 3, 4, 0, 'a3', 'a2'),
                (6, '/registry/a', 0, 0, 3, 5, 0, 'a4', 'a3'),
                (7, 'gap-7', 0, 1, 0, 0, 0, NULL, NULL),
                (8, 'compact_rev_key_apiserver', 1, 0, 0, 0, 0, '1|0', NULL),
                (9, 'compact_rev_key_apiserver', 0, 0, 8, 8, 0, '2|5', '1|0'),
                (10, '/registry/events/e', 1, 0, 0, 0, 3600, 'event', NULL),
                (11, '/registry/b', 1, 0, 0, 0, 0, 'b1', NULL),
                (12, '/registry/b', 0, 1, 0, 11, 0, NULL, 'b1'),
                (13, '/registry/b', 1, 0, 0, 12, 0, 'b2', NULL),
                (20, '/registry/last', 1, 0, 0, 0, 0, '', NULL);
             DELETE FROM kine WHERE id = 20;",
        )
        .unwrap();
        (directory, path)
    }

    fn key(name: &str) -> Key {
        Key::copy_from_slice(name.as_bytes())
    }

    #[test]
    fn a_database_of_kines_opens_as_it_is() {
        let (_directory, path) = kines_database();
        let (log, Recovered { index, head, compacted, leases }) = SqliteLog::open(&path).unwrap();
        // The deleted row 20 was given out: sqlite_sequence knows.
        assert_eq!((head, compacted), (Revision(20), Revision(5)));
        let live: Vec<_> = index
            .live(head)
            .map(|(key, e)| {
                (String::from_utf8_lossy(key).into_owned(), e.created.0, e.modified.0, e.version, e.lease.0)
            })
            .collect();
        let expected = [
            ("/registry/a", 3, 6, 2, 0),
            ("/registry/b", 13, 13, 1, 0),
            ("/registry/events/e", 10, 10, 1, 10),
            ("/registry/health", 2, 2, 1, 0),
            ("compact_rev_key", 8, 9, 2, 0),
        ];
        assert_eq!(live, expected.map(|(key, c, m, v, l)| (key.to_owned(), c, m, v, l)));
        assert_eq!(leases, [StoredLease { id: LeaseId(10), ttl: 3600, remaining: None }]);
        assert_eq!(log.value(&key("compact_rev_key"), Revision(9)).unwrap().unwrap(), "5");
        assert_eq!(log.gaps, [7]);
        log.close().unwrap();
    }

    #[test]
    fn kine_can_go_on_with_what_was_written() {
        let (_directory, path) = kines_database();
        let (mut log, recovered) = SqliteLog::open(&path).unwrap();
        let entry = Entry { modified: Revision(21), created: Revision(3), version: 3, lease: LeaseId(99) };
        let update =
            Row { key: key("/registry/a"), entry, previous: Revision(6), value: Some(Bytes::from_static(b"a5")) };
        log.append(&update, 60).unwrap();
        let delete =
            Row { key: key("/registry/b"), entry: Entry::tombstone(Revision(22)), previous: Revision(13), value: None };
        log.append(&delete, 0).unwrap();
        log.set_compacted(Revision(13)).unwrap();
        log.commit(Revision(22)).unwrap();
        let removal = recovered.index.superseded(None, Revision(13), log.newest_row(), 100);
        log.delete(&removal.revisions, Revision(13)).unwrap();
        log.commit(Revision::ZERO).unwrap();
        log.close().unwrap();

        let kine = Connection::open(&path).unwrap();
        kine.execute_batch(KINE_SCHEMA).unwrap();
        let mut rows = kine
            .prepare(
                "SELECT id || ' ' || name || ' ' || created || deleted || ' ' || create_revision || ' '
                     || prev_revision || ' ' || lease || ' ' || COALESCE(value, 'NULL') FROM kine ORDER BY id",
            )
            .unwrap();
        let rows: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(
            rows,
            [
                "1 compact_rev_key 10 0 13 0 ",
                "2 /registry/health 10 0 0 0 {\"health\":\"true\"}",
                "6 /registry/a 00 3 5 0 a4",
                "9 compact_rev_key_apiserver 00 8 8 0 2|5",
                "10 /registry/events/e 10 0 0 3600 event",
                "13 /registry/b 10 0 12 0 b2",
                "21 /registry/a 00 3 6 60 a5",
                "22 /registry/b 01 0 13 0 NULL",
            ]
        );
        kine.execute("INSERT INTO kine (name, created, deleted) VALUES ('/registry/c', 1, 0)", []).unwrap();
        assert_eq!(kine.last_insert_rowid(), 23);
    }

    #[test]
    fn a_history_that_kine_would_refuse_is_told_at_the_stop() {
        let (_directory, path) = kines_database();
        let (log, _) = SqliteLog::open(&path).unwrap();
        log.connection.execute("UPDATE kine SET prev_revision = 4 WHERE id = 6", []).unwrap();
        match log.close() {
            Err(Error::DuplicateRow { key, previous: 4, .. }) => assert_eq!(key, "/registry/a"),
            other => panic!("should have found the two rows, not {other:?}"),
        }
    }

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
    fn a_file_shrinks_in_steps_once_much_of_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let (mut log, _) = SqliteLog::open(&path).unwrap();
        let revisions: Vec<_> = (2..1000).map(Revision).collect();
        for &modified in &revisions {
            let entry = Entry { modified, created: modified, version: 1, lease: LeaseId::NONE };
            let value = Some(Bytes::from(vec![b'v'; 8000]));
            log.append(&Row { key: key(&format!("/{modified}")), entry, previous: Revision::ZERO, value }, 0).unwrap();
        }
        log.commit(Revision(999)).unwrap();
        assert!(!log.shrink().unwrap(), "nothing is free yet");
        log.delete(&revisions[..900], Revision(990)).unwrap();
        log.commit(Revision::ZERO).unwrap();
        let reader = log.reader().unwrap();
        let before = reader.size().unwrap();
        let steps = std::iter::from_fn(|| log.shrink().unwrap().then_some(())).count();
        let after = reader.size().unwrap();
        assert!((5..50).contains(&steps), "{before:?} {after:?} in {steps} steps");
        assert!(after.total - after.in_use <= FREE_BYTES, "{before:?} {after:?}");
        log.defragment().unwrap();
        let done = reader.size().unwrap();
        assert!(done.total == done.in_use && done.total <= after.in_use, "{done:?}");
        assert_eq!(fs::metadata(&path).unwrap().len(), u64::try_from(done.total).unwrap());
    }

    #[test]
    fn a_second_opener_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let _first = SqliteLog::open(&path).unwrap();
        assert!(matches!(SqliteLog::open(&path), Err(Error::InUse(_))));
    }

    #[test]
    fn a_foreign_writer_is_noticed_before_the_next_commit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let (mut log, _) = SqliteLog::open(&path).unwrap();
        log.put_lease(LeaseId(1), 60, true).unwrap();
        log.commit(Revision::ZERO).unwrap();
        let foreign = Connection::open(&path).unwrap();
        foreign.execute("UPDATE kine SET value = 'x'", []).unwrap();
        assert!(matches!(log.put_lease(LeaseId(2), 60, true), Err(Error::ForeignWriter(_))));
        log.rollback();
        assert!(matches!(log.put_lease(LeaseId(2), 60, true), Err(Error::ForeignWriter(_))));
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
