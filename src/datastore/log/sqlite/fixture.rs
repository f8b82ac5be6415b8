//! A database as kine leaves it.

use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::key::Key;

/// What kine 0.16 executes when it starts.
pub(super) const KINE_SCHEMA: &str = "
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
pub(super) fn kines_database() -> (TempDir, PathBuf) {
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

pub(super) fn key(name: &str) -> Key {
    Key::copy_from_slice(name.as_bytes())
}
