//! The log in an SQLite file.
//!
//! A commit is on the disk when it returns (`synchronous=FULL`), and a commit is one `fdatasync` however many rows it
//! has. The write-ahead log is short and its file is written over again and again: as long as it grows, each commit
//! makes the file system write its own journal as well.
//! There are no indexes while we run: their pages are most of what kine writes; the index is in memory.
//!
//! A new file has pages of 512 bytes, no AUTOINCREMENT and incremental vacuum. A row wastes half a page, and a commit
//! writes whole ones: bytes that reached a disk (ext4) per row of 1500 bytes, log and table together, were 10.5 kB
//! committed alone and 3.9 kB in commits of 24; with 1024-byte pages 13.1 and 4.4, with 2048 17.1 and 4.9. Without
//! vacuum it would be a page less, but then a file that has grown stays so until it is rewritten.
//! A file from kine keeps its settings. kine recreates its indexes when it opens the file again.
//!
//! ```text
//! open: files ──► open ──► schema ──► recover ──► SqliteLog: append … commit, space ──► close
//!                                                     └──► Reader: values by revision
//! ```

pub(crate) mod copy;
#[cfg(test)]
mod damage;
mod files;
#[cfg(test)]
mod fixture;
mod open;
mod reader;
mod recover;
mod schema;
mod space;
mod unclean;
mod wal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use tracing::warn;

use self::files::Files;
pub(crate) use self::files::{beside, directory_of};
pub(crate) use self::reader::{Reader, Size};
pub(crate) use self::recover::Recovered;
pub use self::schema::FORMAT;
use super::kine;
use crate::error::Error;
use crate::key::Key;
use crate::revision::{LeaseId, Revision};
use crate::txn::Row;

const INSERT: &str = "
    INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value, version, lease_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

/// The one connection that writes.
pub(crate) struct SqliteLog {
    connection: Connection,
    path: PathBuf,
    vfs: Option<String>,
    /// `PRAGMA data_version` of our last look: any other value means that somebody else has written.
    data_version: i64,
    compact_row: i64,
    newest_row: Revision,
    /// Rows that only fill gaps, to go with the next compaction.
    gaps: Vec<i64>,
    page_size: i64,
    incremental: bool,
    in_transaction: bool,
    /// After the connection, which has to be gone before the lock is.
    files: Files,
}

impl SqliteLog {
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

    /// Fills the ids up to `revision` in the transaction at hand, as kine fills ids that are never to be used.
    pub(crate) fn skip_to(&mut self, revision: Revision) -> Result<(), Error> {
        self.begin()?;
        self.execute(
            "append to",
            "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease)
             VALUES (?1, 'gap-' || ?1, 0, 1, 0, 0, 0)",
            [revision.0],
        )
    }

    /// Deletes compacted rows in the transaction at hand, in this order, and the gap rows up to `compacted`. Returns the
    /// rows with their keys.
    pub(crate) fn delete(
        &mut self,
        revisions: &[Revision],
        compacted: Revision,
    ) -> Result<Vec<(Key, Revision)>, Error> {
        let newest = self.newest_row.0;
        let (old, kept): (Vec<_>, _) =
            std::mem::take(&mut self.gaps).into_iter().partition(|&id| id < compacted.0 && id < newest);
        self.gaps = kept;
        for id in old {
            self.begin()?;
            self.execute("compact", "DELETE FROM kine WHERE id = ?1", [id])?;
        }
        let mut deleted = Vec::with_capacity(revisions.len());
        for &revision in revisions {
            self.begin()?;
            let key = self.delete_row(revision).map_err(at("compact", &self.path))?;
            deleted.extend(key.map(|key| (key, revision)));
        }
        Ok(deleted)
    }

    fn delete_row(&self, revision: Revision) -> rusqlite::Result<Option<Key>> {
        let mut statement = self.connection.prepare_cached("DELETE FROM kine WHERE id = ?1 RETURNING name")?;
        let key = |row: &rusqlite::Row<'_>| Ok(kine::key_of(row.get_ref(0)?.as_bytes_or_null()?.unwrap_or_default()));
        statement.query_row([revision.0], key).optional()
    }

    /// Makes the transaction at hand durable, since `open.rs` sets `synchronous=FULL`. Returns whether there was one. `newest` is the largest row id by now.
    pub(crate) fn commit(&mut self, newest: Revision) -> Result<bool, Error> {
        if !self.in_transaction {
            return Ok(false);
        }
        self.execute("commit to", "COMMIT", [])?;
        self.in_transaction = false;
        self.newest_row = self.newest_row.max(newest);
        Ok(true)
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
        reader::value(&self.connection, key, revision).map_err(at("read", &self.path))
    }

    /// The largest row id.
    pub(crate) fn newest_row(&self) -> Revision {
        self.newest_row
    }

    /// Checks what kine would refuse, moves everything into the table and closes the file.
    pub(crate) fn close(mut self) -> Result<(), Error> {
        self.rollback();
        let Self { connection, path, files, .. } = self;
        let duplicate = recover::duplicate_row(&connection).map_err(at("check", &path))?;
        // First: from here on the write-ahead log may be gone.
        files.mark_closed()?;
        open::hold_back_checkpoint(&connection, false).map_err(at("close", &path))?;
        connection.close().map_err(|(_, source)| at("close", &path)(source))?;
        match duplicate {
            Some((key, previous)) => Err(Error::DuplicateRow { path, key, previous }),
            None => Ok(()),
        }
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
        if self.query("PRAGMA data_version", 0)? == self.data_version {
            Ok(())
        } else {
            Err(Error::ForeignWriter(self.path.clone()))
        }
    }

    fn execute(&self, action: &'static str, sql: &str, params: impl rusqlite::Params) -> Result<(), Error> {
        let run = || self.connection.prepare_cached(sql)?.execute(params);
        run().map(drop).map_err(at(action, &self.path))
    }

    fn query(&self, sql: &str, column: usize) -> Result<i64, Error> {
        let run = || self.connection.prepare_cached(sql)?.query_row([], |row| row.get(column));
        run().map_err(at("query", &self.path))
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
    use super::fixture::{KINE_SCHEMA, key, kines_database};
    use super::*;
    use crate::index::Entry;

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
}
