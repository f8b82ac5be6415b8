//! What a file holds when it is opened: one scan of all rows but their values, which changes nothing.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::super::kine;
use super::open::unusable;
use super::schema::Schema;
use super::unix_now;
use crate::error::Error;
use crate::index::{Entry, Index};
use crate::key::Key;
use crate::revision::{LeaseId, Revision};

/// No revision, version or lease id of a sound file comes near this: the next ones have to be numbers too.
const TOO_LARGE: i64 = 1 << 62;

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

/// What a scan has found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) schema: Schema,
    pub(super) index: Index,
    /// The largest row id.
    pub(super) newest_row: Revision,
    /// Compacted revision and id of kine's compact rows; there should be one.
    pub(super) compact_rows: Vec<(i64, i64)>,
    /// Rows that only fill gaps.
    pub(super) gaps: Vec<i64>,
    leases: HashMap<LeaseId, StoredLease>,
    /// Time to live of leases that rows name and the table of leases does not have.
    row_leases: HashMap<LeaseId, i64>,
    /// The largest of what was given out and has no row any more: the compacted revision, SQLite's own count.
    given_out: Revision,
    compacted: Revision,
    /// Whether a row follows another one than its key's row before.
    out_of_line: bool,
}

/// Why a scan stopped: SQLite's reason, or what is wrong with a row.
enum Fault {
    Sqlite(rusqlite::Error),
    Row(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Scan {
    /// Reads a database.
    pub(super) fn read(connection: &Connection, path: &Path, schema: Schema) -> Result<Self, Error> {
        let scan = Self::try_read(connection, schema).map_err(|fault| match fault {
            Fault::Sqlite(error) => unusable("read", path)(error),
            Fault::Row(finding) => Error::Damaged { path: path.to_owned(), finding },
        })?;
        if scan.out_of_line
            && let Some((key, previous)) = duplicate_row(connection).map_err(unusable("read", path))?
        {
            return Err(Error::DuplicateRow { path: path.to_owned(), key, previous });
        }
        Ok(scan)
    }

    /// The newest revision that was given out.
    pub(super) fn head(&self) -> Revision {
        self.newest_row.max(self.given_out)
    }

    /// What the store is made of.
    pub(super) fn recovered(self) -> Recovered {
        let head = self.head();
        let Self { index, compacted, leases, .. } = self;
        Recovered { index, head, compacted, leases: leases.into_values().collect() }
    }

    fn try_read(connection: &Connection, schema: Schema) -> Result<Self, Fault> {
        let mut scan = Self { schema, ..Self::default() };
        if schema.leases {
            scan.leases = stored_leases(connection)?;
        }
        if schema.kine {
            let column = |there, name| if there { name } else { "NULL" };
            let mut statement = connection.prepare(&format!(
                "SELECT id, name, created, deleted, create_revision, prev_revision, lease, {}, {},
                        CASE WHEN name = 'compact_rev_key_apiserver' THEN value END
                 FROM kine ORDER BY id",
                column(schema.version, "version"),
                column(schema.lease_id, "lease_id"),
            ))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                scan.take(row)?;
            }
        }
        scan.keep_leases_of_live_keys();
        scan.compacted = Revision(scan.compact_rows.iter().map(|(revision, _)| *revision).max().unwrap_or(0));
        scan.given_out = scan.compacted.max(autoincrement_sequence(connection)?);
        if scan.given_out.0 > TOO_LARGE {
            return Err(Fault::Row(format!("no revision is as large as {}", scan.given_out)));
        }
        Ok(scan)
    }

    /// kine has no table of leases. One whose keys are all gone has ended, and must not come back from their past.
    fn keep_leases_of_live_keys(&mut self) {
        for (_, entry) in self.index.live(self.newest_row) {
            if let Some(ttl) = self.row_leases.remove(&entry.lease) {
                self.leases.insert(entry.lease, StoredLease { id: entry.lease, ttl, remaining: None });
            }
        }
    }

    fn take(&mut self, row: &Row<'_>) -> Result<(), Fault> {
        let id: i64 = row.get(0)?;
        let finding = |what: &str| Err(Fault::Row(format!("row {id} {what}")));
        let number = |column| row.get::<_, Option<i64>>(column).map(Option::unwrap_or_default);
        let (created, deleted) = (number(2)? != 0, number(3)? != 0);
        let (create_revision, prev_revision, ttl) = (number(4)?, number(5)?, number(6)?);
        let name = match row.get_ref(1)? {
            ValueRef::Text(name) | ValueRef::Blob(name) if !name.is_empty() => name,
            _ => return finding("has no name"),
        };
        if !(1..TOO_LARGE).contains(&id) {
            return finding("has a number that no revision can have");
        }
        self.newest_row = Revision(id);
        if name == kine::COMPACT_ROW.as_bytes() {
            self.compact_rows.push((prev_revision, id));
            return Ok(());
        }
        if prev_revision >= id || !(0..=id).contains(&create_revision) {
            return finding("follows a row that is newer than itself");
        }
        if kine::is_gap(id, name, deleted, prev_revision) {
            self.gaps.push(id);
            return Ok(());
        }
        let key = kine::key_of(name);
        let newest = self.index.newest(&key);
        self.out_of_line |= newest.is_some_and(|entry| entry.modified.0 != prev_revision);
        let modified = Revision(id);
        if deleted {
            self.index.push(&key, Entry::tombstone(modified));
            return Ok(());
        }
        // kine writes one for each update.
        let created = if created || create_revision == 0 { modified } else { Revision(create_revision) };
        // A row of kine's has no version. This one grows with each change, and stays when compaction takes the rows
        // before.
        let version = row.get::<_, Option<i64>>(7)?.or_else(|| version_in_value(&key, row));
        let version = version.unwrap_or(modified.0 - created.0 + 1);
        if version >= TOO_LARGE {
            return finding("has a version that no key can have");
        }
        let lease = match row.get::<_, Option<i64>>(8)? {
            Some(lease) => LeaseId(lease),
            // A row of kine's has a time to live and no lease: it is its own.
            None if ttl > 0 => LeaseId(id),
            None => LeaseId::NONE,
        };
        if !lease.is_none() && !self.leases.contains_key(&lease) {
            self.row_leases.insert(lease, ttl);
        }
        self.index.push(&key, Entry { modified, created, version: version.max(1), lease });
        Ok(())
    }
}

/// A name and `prev_revision` that two rows share.
pub(super) fn duplicate_row(connection: &Connection) -> rusqlite::Result<Option<(String, i64)>> {
    // Hashes, since the names of a large table would not fit in memory; equal ones also need equal predecessors.
    let hasher = RandomState::new();
    let mut seen = HashSet::new();
    let mut statement = connection.prepare("SELECT name, prev_revision FROM kine WHERE name != ?1")?;
    let mut rows = statement.query([kine::COMPACT_ROW])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_bytes_or_null()?.unwrap_or_default();
        let previous = row.get::<_, Option<i64>>(1)?.unwrap_or_default();
        if !seen.insert((hasher.hash_one(name), previous)) {
            return Ok(Some((String::from_utf8_lossy(name).into_owned(), previous)));
        }
    }
    Ok(None)
}

fn version_in_value(key: &Key, row: &Row<'_>) -> Option<i64> {
    match row.get_ref(9) {
        Ok(ValueRef::Blob(value) | ValueRef::Text(value)) => kine::version_in_value(key, value),
        _ => None,
    }
}

fn stored_leases(connection: &Connection) -> rusqlite::Result<HashMap<LeaseId, StoredLease>> {
    let now = unix_now();
    let mut statement = connection.prepare("SELECT id, ttl, expires FROM k3s_lease")?;
    let leases = statement.query_map([], |row| {
        let (id, ttl) = (LeaseId(row.get(0)?), row.get::<_, i64>(1)?);
        let expires: Option<i64> = row.get(2)?;
        // A clock that went back must not make a lease longer than it was granted.
        let remaining = expires.map(|expires| expires.saturating_sub(now).clamp(0, ttl.max(0)));
        Ok((id, StoredLease { id, ttl, remaining }))
    })?;
    leases.collect()
}

/// The largest id that SQLite has given out itself; zero if the table does not count.
fn autoincrement_sequence(connection: &Connection) -> rusqlite::Result<Revision> {
    let counts: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence')",
        [],
        |row| row.get(0),
    )?;
    if !counts {
        return Ok(Revision::ZERO);
    }
    let sequence =
        connection.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'kine'", [], |row| row.get(0)).optional()?;
    Ok(Revision(sequence.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::super::SqliteLog;
    use super::super::fixture::{key, kines_database};
    use super::*;

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
            ("/registry/a", 3, 6, 4, 0),
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
}
