//! What the last stop was like: looked at before SQLite opens anything, since that would already repair.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use tracing::warn;

use super::files::{Files, beside};
use super::{schema, wal};
use crate::error::Error;

/// How the database was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Closed properly, by whomever, or new.
    Clean,
    /// There is a write-ahead log, or our mark: it has to be checked.
    Unclean,
}

/// Refuses to go on where acknowledged writes are known to be lost.
///
/// Only our mark says that a log belongs to the database and that each commit in it was an fsync. Without it, as after kine with its
/// `synchronous=NORMAL`, what is missing may never have been promised: that is only told.
pub(super) fn examine(files: &Files) -> Result<Stop, Error> {
    let path = &files.database;
    let marked = files.are_marked()?;
    let log_path = beside(path, "-wal");
    let log = match File::open(&log_path) {
        Ok(log) => log,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file("open", log_path)(error)),
        Err(_) if !marked => return Ok(Stop::Clean),
        Err(_) if kine_was_here(path) => return Ok(Stop::Unclean),
        Err(_) => return Err(Error::MissingLog(path.clone())),
    };
    let is_empty = log.metadata().map_err(Error::file("look at", &log_path))?.len() == 0;
    match wal::lost_commits(BufReader::new(log)).map_err(Error::file("read", log_path))? {
        // Whoever only looks at a database leaves an empty one.
        0 if is_empty && !marked => return Ok(Stop::Clean),
        0 => {}
        commits if marked => return Err(Error::LostCommits { path: path.clone(), commits }),
        commits => warn!(path = %path.display(), commits, "The write-ahead log is damaged; commits in it are lost."),
    }
    Ok(Stop::Unclean)
}

/// Whether kine has used the database since we did: it makes its indexes at each start, and we drop them. If so it has taken care of the log.
fn kine_was_here(path: &Path) -> bool {
    // Neither takes locks nor makes files. What cannot be read now will be refused in a moment.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{}?immutable=1", percent_encoded(path)), flags)
        .and_then(|connection| schema::indexes(&connection))
        .is_ok_and(|indexes| !indexes.is_empty())
}

fn percent_encoded(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let encode = |&byte: &u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.as_os_str().as_bytes().iter().map(encode).collect()
}
