//! Copying a database that is in use, and checking a copy.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use super::recover::duplicate_row;
use super::{at, open};
use crate::error::Error;
use crate::revision::Revision;

/// Pages that are copied between two looks at whether to go on.
const STEP: i32 = 512;

/// What a copy holds.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The largest row id.
    pub(crate) revision: Revision,
    /// The number of the format.
    pub(crate) format: i64,
    /// Bytes of the file.
    pub(crate) bytes: u64,
}

/// Copies the database as it is at this moment into an empty file; writers go on meanwhile. Cancelled, it ends with
/// [`Error::Closed`].
pub(crate) fn copy(database: &Path, to: &Path, cancel: &CancellationToken) -> Result<(), Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(database, flags).map_err(at("open", database))?;
    // A read transaction that lasts: without it each write in between would make SQLite begin anew.
    let view = source.unchecked_transaction().map_err(at("read", database))?;
    view.query_row("SELECT COUNT(*) FROM sqlite_master", [], |_| Ok(())).map_err(at("read", database))?;

    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(to, flags).map_err(at("write", to))?;
    // The file counts for nothing before it is complete, checked and synced.
    for (pragma, value) in [("journal_mode", "OFF"), ("synchronous", "OFF")] {
        target.pragma_update(None, pragma, value).map_err(at("write", to))?;
    }
    let backup = Backup::new(&view, &mut target).map_err(at("write", to))?;
    while !cancel.is_cancelled() {
        match backup.step(STEP).map_err(at("copy into", to))? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            // Nobody else has the target, and a reader of a write-ahead log waits for nobody.
            _ => return Err(Error::InUse { path: database.to_owned(), holder: None }),
        }
    }
    Err(Error::Closed)
}

/// Makes a copy a file that needs no other beside it, and checks all of it: structure, history, format.
pub(crate) fn finish_copy(path: &Path) -> Result<Contents, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(path, flags).map_err(at("open", path))?;
    let read = || {
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        let finding: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        let format = copy.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let revision: Option<i64> = copy.query_row("SELECT MAX(id) FROM kine", [], |row| row.get(0))?;
        Ok((finding, format, revision.unwrap_or_default(), duplicate_row(&copy)?))
    };
    let (finding, format, revision, duplicate) = read().map_err(open::unusable("check", path))?;
    if finding != "ok" {
        return Err(Error::Damaged { path: path.to_owned(), finding });
    }
    if let Some((key, previous)) = duplicate {
        return Err(Error::DuplicateRow { path: path.to_owned(), key, previous });
    }
    copy.close().map_err(|(_, source)| at("close", path)(source))?;
    let bytes = fs::metadata(path)
        .map_err(|source| Error::File { action: "read", path: path.to_owned(), source: Arc::new(source) })?
        .len();
    Ok(Contents { revision: Revision(revision), format, bytes })
}
