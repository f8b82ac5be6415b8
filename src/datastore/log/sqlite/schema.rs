//! Our form of kine's table.

use std::path::Path;

use rusqlite::Connection;
use tracing::info;

/// Format of our own tables and columns, in `PRAGMA user_version`; kine leaves it zero.
pub(super) const FORMAT: i64 = 1;

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

/// Brings the tables to our form; keeps everything that kine needs. Returns whether the file can shrink by itself.
pub(super) fn migrate(connection: &Connection, path: &Path) -> rusqlite::Result<bool> {
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
