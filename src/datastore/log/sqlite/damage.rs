//! Everything that a start may find in the place of a sound database: each is named in one sentence with the file and a
//! way on, and what lies there stays as it is.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rusqlite::Connection;

use super::files::beside;
use super::fixture::{key, kines_database};
use super::{Recovered, SqliteLog};
use crate::error::Error;
use crate::index::Entry;
use crate::revision::{LeaseId, Revision};
use crate::txn::Row;

const HEAD: i64 = 200;
/// Commits that are in the write-ahead log only, after a crash.
const TAIL: i64 = 4;

/// What became of the database at a path, and what the refusal of it says beside the path.
type Case = (&'static str, fn(&Path), &'static [&'static str]);

const CASES: [Case; 22] = [
    ("a text", |path| fs::write(path, "my notes\n").unwrap(), &[NOT_SQLITE, SNAPSHOT, "move it away"]),
    ("a long text", |path| fs::write(path, "my notes\n".repeat(500)).unwrap(), &[NOT_SQLITE]),
    ("a damaged header", |path| sound(path).scribble(0, 16), &[NOT_SQLITE]),
    ("a page of garbage", |path| sound(path).scribble(middle(path), 1024), &[DAMAGED, "malformed", SNAPSHOT]),
    ("the same after a crash", |path| crashed(path).scribble(middle(path), 1024), &[DAMAGED, SNAPSHOT]),
    ("half a file", |path| sound(path).truncate(middle(path)), &[DAMAGED, "malformed"]),
    ("half a page too much", |path| sound(path).truncate(middle(path) + 256), &[DAMAGED, "malformed"]),
    ("an empty file with a log", |path| crashed(path).truncate(0), &["is missing or empty", SNAPSHOT]),
    ("a log alone", |path| crashed(path).remove(), &["is missing or empty", "put the database back", SNAPSHOT]),
    (
        "no log after a crash",
        |path| crashed(path).log().remove(),
        &["-wal is missing", "put the log back", SNAPSHOT, "or remove", "-lock"],
    ),
    (
        "a rotten log",
        |path| crashed(path).log().scribble(200, 8),
        &["-wal is damaged", "3 or more acknowledged commits", SNAPSHOT, "or remove", "-lock"],
    ),
    ("a newer format", |path| sound(path).sql("PRAGMA user_version = 2"), &[NEWER, "format 2", "knows up to 1"]),
    ("a new column", |path| sound(path).sql("ALTER TABLE kine ADD COLUMN origin TEXT"), &[NEWER, "\"origin\""]),
    ("another program's", |path| empty(path).sql("CREATE TABLE bookmarks (url)"), &[FOREIGN, "\"bookmarks\""]),
    ("another kine", |path| empty(path).sql("CREATE TABLE kine (cows)"), &[FOREIGN, "no column \"id\""]),
    (
        "two rows in one place",
        |path| sound(path).sql("UPDATE kine SET name = '/k5', prev_revision = 5 WHERE id IN (7, 9)"),
        &["two rows for key \"/k5\" after revision 5", SNAPSHOT],
    ),
    (
        "a row without a name",
        |path| sound(path).sql("UPDATE kine SET name = NULL WHERE id = 9"),
        &[DAMAGED, "row 9 has no name"],
    ),
    (
        "a row from the future",
        |path| sound(path).sql("UPDATE kine SET prev_revision = 9 WHERE id = 9"),
        &[DAMAGED, "row 9 follows"],
    ),
    (
        "a number that is a text",
        |path| sound(path).sql("UPDATE kine SET create_revision = 'ten' WHERE id = 9"),
        &[DAMAGED, "create_revision"],
    ),
    (
        "the last number there is",
        |path| sound(path).sql("UPDATE kine SET id = 0x7fffffffffffffff WHERE id = 9"),
        &[DAMAGED, "a number that no revision can have"],
    ),
    ("a directory", |path| fs::create_dir(path).unwrap(), &["is a directory, not a database file"]),
    ("a pipe", |path| mkfifo(path, Mode::S_IRWXU).unwrap(), &["is a pipe, not a database file"]),
];

const NOT_SQLITE: &str = "is not an SQLite database";
const DAMAGED: &str = "is damaged: ";
const NEWER: &str = "was written by a newer program (";
const FOREIGN: &str = "is the database of another program (";
const SNAPSHOT: &str = "k3s snapshot restore";

#[test]
fn each_damage_is_named_and_left_alone() {
    for (what, make, says) in CASES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        make(&path);
        let before = contents(directory.path());
        let refusal = refused(&path);
        let sentence = refusal.to_string();
        for part in says.iter().chain([&path.to_str().unwrap()]) {
            assert!(sentence.contains(part), "{what}: \"{part}\" is not in \"{sentence}\"");
        }
        assert!(!sentence.ends_with('.') && !sentence.contains('\n'), "{what}: \"{sentence}\" is not one sentence");
        assert_eq!(u8::from(refusal.exit_code()), 65, "{what}");
        assert!(contents(directory.path()) == before, "{what}: a file was changed");
        assert_eq!(refused(&path).to_string(), sentence, "{what}: it is something else the second time");
    }
}

#[test]
fn what_a_crash_leaves_is_read_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    crashed(&path);
    // A commit that did not get far.
    let log = OpenOptions::new().append(true).open(beside(&path, "-wal")).unwrap();
    log.write_all_at(&[0xa5; 700], log.metadata().unwrap().len()).unwrap();
    let (log, recovered) = SqliteLog::open(&path).unwrap();
    assert_eq!((recovered.head, recovered.leases.len()), (Revision(HEAD), TAIL as usize));
    log.close().unwrap();
    assert!(!beside(&path, "-wal").exists());
}

#[test]
fn a_loss_can_be_accepted() {
    for lose in [Victim::remove, |log: Victim| log.scribble(200, 8)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        lose(crashed(&path).log());
        refused(&path);
        fs::remove_file(beside(&path, "-lock")).unwrap();
        let (log, Recovered { head, leases, .. }) = SqliteLog::open(&path).unwrap();
        assert_eq!((head, leases.len()), (Revision(HEAD), 0));
        log.close().unwrap();
    }
}

#[test]
fn the_mark_says_nothing_about_a_file_that_was_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let (path, saved) = (directory.path().join("state.db"), directory.path().join("saved.db"));
    sound(&saved);
    crashed(&path).log().remove();
    fs::rename(&saved, &path).unwrap();
    SqliteLog::open(&path).unwrap().0.close().unwrap();
}

#[test]
fn kine_may_have_tidied_up_after_our_crash() {
    let (_directory, path) = kines_database();
    drop(SqliteLog::open(&path).unwrap());
    assert!(beside(&path, "-wal").exists());
    let kine = Connection::open(&path).unwrap();
    kine.execute_batch(super::fixture::KINE_SCHEMA).unwrap();
    drop(kine);
    assert!(!beside(&path, "-wal").exists());
    SqliteLog::open(&path).unwrap().0.close().unwrap();
}

#[test]
fn a_link_has_to_lead_somewhere() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("state.db");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    let refusal = refused(&link);
    assert!(refusal.to_string().starts_with(&format!("cannot follow the link {}: No such file", link.display())));
    assert_eq!(u8::from(refusal.exit_code()), 74);
}

#[test]
fn a_database_that_is_being_written_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    sound(&path);
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; UPDATE kine SET lease = 0 WHERE id = 9").unwrap();
    let refusal = refused(&path);
    assert!(refusal.to_string().ends_with("in use by another process: stop that one first"), "{refusal}");
    assert_eq!(u8::from(refusal.exit_code()), 75);
}

#[test]
fn a_link_leads_to_the_same_lock() {
    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (directory.path().join("state.db"), directory.path().join("link.db"));
    sound(&path);
    std::os::unix::fs::symlink("state.db", &link).unwrap();
    let _open = SqliteLog::open(&link).unwrap();
    assert!(matches!(refused(&path), Error::InUse { .. }));
}

#[test]
fn another_process_is_named_by_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    sound(&path);
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "log::sqlite::damage::other_process", "--nocapture"])
        .env(DATABASE, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "open"));
    let refusal = refused(&path);
    drop(other.stdin.take());
    lines.for_each(drop);
    other.wait().unwrap();
    assert!(refusal.to_string().contains(&format!("in use by process {}: stop", other.id())), "{refusal}");
    SqliteLog::open(&path).unwrap().0.close().unwrap();
}

/// Names the database for [`other_process`].
const DATABASE: &str = "K3S_DATASTORE_TEST_OTHER";

/// Not a test of its own: what has the database open while the test above looks. Ends with its standard input.
#[test]
fn other_process() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let connection = Connection::open(path).unwrap();
    connection.query_row("SELECT COUNT(*) FROM kine", [], |_| Ok(())).unwrap();
    println!("\nopen");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn refused(path: &Path) -> Error {
    match SqliteLog::open(path) {
        Err(error) => error,
        Ok((_, recovered)) => panic!("should have been refused, not opened at {}", recovered.head),
    }
}

/// A database with rows up to [`HEAD`], closed properly.
fn sound(path: &Path) -> Victim {
    filled(path).close().unwrap();
    Victim(path.to_owned())
}

/// The same with [`TAIL`] more commits, as a crash leaves it.
fn crashed(path: &Path) -> Victim {
    let mut log = filled(path);
    log.defragment().unwrap();
    for id in 1..=TAIL {
        log.put_lease(LeaseId(id), 60, true).unwrap();
        log.commit(Revision::ZERO).unwrap();
    }
    Victim(path.to_owned())
}

fn empty(path: &Path) -> Victim {
    Victim(path.to_owned())
}

fn filled(path: &Path) -> SqliteLog {
    let (mut log, _) = SqliteLog::open(path).unwrap();
    for modified in (2..=HEAD).map(Revision) {
        let entry = Entry { modified, created: modified, version: 1, lease: LeaseId::NONE };
        let value = Some(Bytes::from(vec![b'v'; 700]));
        let key = key(&format!("/k{modified}"));
        log.append(&Row { key, entry, previous: Revision::ZERO, value }, 0).unwrap();
    }
    log.commit(Revision(HEAD)).unwrap();
    log
}

/// A file that something happens to.
struct Victim(PathBuf);

impl Victim {
    fn log(self) -> Self {
        Self(beside(&self.0, "-wal"))
    }

    fn scribble(self, offset: u64, length: usize) {
        OpenOptions::new().write(true).open(self.0).unwrap().write_all_at(&vec![0xa5; length], offset).unwrap();
    }

    fn truncate(self, length: u64) {
        OpenOptions::new().write(true).open(self.0).unwrap().set_len(length).unwrap();
    }

    fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }

    fn sql(self, statement: &str) {
        Connection::open(self.0).unwrap().execute_batch(statement).unwrap();
    }
}

/// Offset of a page in the middle of the file.
fn middle(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len() / 2 / 1024 * 1024
}

/// All files that hold data. SQLite makes an empty log when it looks at a database.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| Some((path.clone(), fs::read(path).ok().filter(|bytes| !bytes.is_empty())?));
    files.filter(|path| path.is_file() && !path.to_string_lossy().ends_with("-shm")).filter_map(read).collect()
}
