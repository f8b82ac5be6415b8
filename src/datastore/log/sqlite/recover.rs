//! What a file holds when it is opened: one scan of all rows but their values.

use std::collections::HashMap;

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension as _, params};

use super::super::kine;
use super::{SqliteLog, unix_now};
use crate::error::Error;
use crate::index::{Entry, Index};
use crate::revision::{LeaseId, Revision};

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

impl SqliteLog {
    /// Reads all rows but their values. The outer error is SQLite's.
    pub(super) fn recover(&mut self) -> rusqlite::Result<Result<Recovered, Error>> {
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

#[cfg(test)]
mod tests {
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
}
