//! The tables: what another program's look like, and how kine's become ours.

use std::path::Path;

use rusqlite::{Connection, Transaction, params};
use tracing::info;

use super::super::kine;
use super::open::unusable;
use super::recover::Scan;
use crate::error::Error;
use crate::revision::Revision;

/// Format of our own tables and columns, in `PRAGMA user_version`; kine leaves it zero.
pub const FORMAT: i64 = 1;

/// `version` and `lease_id` come before the values, so that the start, which reads all rows without their values, does
/// not step over them. kine, which names its columns, does not mind; in a file of its own they are added behind.
const CREATE_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS kine (
        id INTEGER PRIMARY KEY,
        name TEXT,
        created INTEGER,
        deleted INTEGER,
        create_revision INTEGER,
        prev_revision INTEGER,
        lease INTEGER,
        version INTEGER,
        lease_id INTEGER,
        value BLOB,
        old_value BLOB
    );
    CREATE TABLE IF NOT EXISTS k3s_lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL, expires INTEGER);";

/// The columns of kine's table.
const KINES: [&str; 9] =
    ["id", "name", "created", "deleted", "create_revision", "prev_revision", "lease", "value", "old_value"];
/// Those that we add.
const OURS: [&str; 2] = ["version", "lease_id"];

/// What of our schema a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Schema {
    /// Whether there is kine's table; a new file has none.
    pub(super) kine: bool,
    pub(super) version: bool,
    pub(super) lease_id: bool,
    /// Whether there is our table of leases.
    pub(super) leases: bool,
}

impl Schema {
    /// Looks at the tables; refuses those of another program and of a newer one.
    pub(super) fn read(connection: &Connection, path: &Path) -> Result<Self, Error> {
        let format: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(unusable("read", path))?;
        let tables = names(
            connection,
            "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'",
        );
        let tables = tables.map_err(unusable("read", path))?;
        let columns =
            names(connection, "SELECT name FROM pragma_table_info('kine')").map_err(unusable("read", path))?;
        let has = |column: &str| columns.iter().any(|found| found == column);
        let foreign = |finding| Err(Error::Foreign { path: path.to_owned(), finding });
        let newer = |finding| Err(Error::Newer { path: path.to_owned(), finding });
        if columns.is_empty() {
            return match tables.first() {
                Some(table) => foreign(format!("it has a table {table:?} and none of kine's")),
                None => Ok(Self::default()),
            };
        }
        if let Some(missing) = KINES.iter().find(|column| !has(column)) {
            return foreign(format!("its table \"kine\" has no column {missing:?}"));
        }
        if format > FORMAT {
            return newer(format!("format {format}, and this one knows up to {FORMAT}"));
        }
        if let Some(unknown) = columns.iter().find(|name| !KINES.iter().chain(&OURS).any(|known| known == name)) {
            return newer(format!("the table \"kine\" has a column {unknown:?}"));
        }
        let leases = tables.iter().any(|table| table == "k3s_lease");
        Ok(Self { kine: true, version: has("version"), lease_id: has("lease_id"), leases })
    }
}

/// Brings the tables to our form; keeps everything that kine needs. Returns the id of kine's compact row.
pub(super) fn migrate(transaction: &Transaction<'_>, path: &Path, scan: &mut Scan) -> rusqlite::Result<i64> {
    transaction.execute_batch(CREATE_TABLES)?;
    let Schema { kine, version, lease_id, .. } = scan.schema;
    for (column, there) in OURS.iter().zip([version, lease_id]) {
        if kine && !there {
            transaction.execute_batch(&format!("ALTER TABLE kine ADD COLUMN {column} INTEGER"))?;
        }
    }
    let indexes = indexes(transaction)?;
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
    keep_one_compact_row(transaction, scan)
}

/// The indexes on kine's table that somebody made. We have none.
pub(super) fn indexes(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    names(connection, "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'kine' AND sql IS NOT NULL")
}

/// kine wants exactly one such row, and had a bug that wrote two: the one with the largest revision counts.
fn keep_one_compact_row(transaction: &Transaction<'_>, scan: &mut Scan) -> rusqlite::Result<i64> {
    scan.compact_rows.sort_unstable();
    let Some((_, keep)) = scan.compact_rows.pop() else {
        let id = scan.head().next();
        transaction.execute(
            "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value)
             VALUES (?1, ?2, 1, 0, 0, 0, 0, x'')",
            params![id.0, kine::COMPACT_ROW],
        )?;
        scan.newest_row = id;
        return Ok(id.0);
    };
    for (_, id) in scan.compact_rows.drain(..).filter(|(_, id)| Revision(*id) != scan.newest_row) {
        transaction.execute("DELETE FROM kine WHERE id = ?1", [id])?;
    }
    Ok(keep)
}

fn names(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}
