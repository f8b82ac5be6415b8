//! Reading values by revision, beside the connection that writes.

use std::path::PathBuf;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Statement, Transaction};

use super::super::kine;
use super::at;
use crate::error::Error;
use crate::key::Key;
use crate::revision::Revision;

const SELECT_VALUE: &str = "SELECT value FROM kine WHERE id = ?1";

/// Sizes of the database file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Bytes of the file.
    pub(crate) total: i64,
    /// Bytes of it that hold data.
    pub(crate) in_use: i64,
}

/// A connection that only reads.
pub(crate) struct Reader {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

impl Reader {
    /// The values of rows, in their order; `None` for a row that compaction has deleted.
    pub(crate) fn values(&self, rows: &[(Key, Revision)]) -> Result<Vec<Option<Bytes>>, Error> {
        let read = || {
            // One read transaction for several rows, instead of a lock and an unlock for each.
            let snapshot = (rows.len() > 1).then(|| self.connection.unchecked_transaction()).transpose()?;
            let mut select = self.connection.prepare_cached(SELECT_VALUE)?;
            let values: rusqlite::Result<_> =
                rows.iter().map(|(key, revision)| select_value(&mut select, key, *revision)).collect();
            drop(select);
            snapshot.map_or(Ok(()), Transaction::finish)?;
            values
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

pub(super) fn value(connection: &Connection, key: &Key, revision: Revision) -> rusqlite::Result<Option<Bytes>> {
    select_value(&mut *connection.prepare_cached(SELECT_VALUE)?, key, revision)
}

fn select_value(select: &mut Statement<'_>, key: &Key, revision: Revision) -> rusqlite::Result<Option<Bytes>> {
    select
        .query_row([revision.0], |row| {
            Ok(match row.get_ref(0)? {
                ValueRef::Blob(value) | ValueRef::Text(value) => kine::decode_value(key, value),
                _ => Bytes::new(),
            })
        })
        .optional()
}
