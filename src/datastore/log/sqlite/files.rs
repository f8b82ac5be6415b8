//! The files of a database: made private to us, locked against others, and marked for as long as they are open.
//!
//! Beside `state.db` lie SQLite's `state.db-wal` and `state.db-shm`, and our `state.db-lock`. We hold a lock on the
//! last one, and it says `open INODE` from when the database may be written until it is closed properly. So a start
//! that finds the words knows that there has to be a write-ahead log, written with an fsync for each commit. A database
//! that was put in the place of the marked one has another inode: nothing is known about its log.

use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::Error;
use crate::snapshot;

/// The byte of `-shm` that each process locks for reading while it has a database in WAL mode open (`UNIX_SHM_DMS` in
/// SQLite's `os_unix.c`).
const SHM_IN_USE: libc::off_t = 128;

/// The files of one database, locked for us.
#[derive(Debug)]
pub(super) struct Files {
    /// The database, links followed: SQLite keeps its files beside the real one, and so do we.
    pub(super) database: PathBuf,
    lock: File,
    lock_path: PathBuf,
}

impl Files {
    /// Makes directory, lock and database where they are missing, and refuses what cannot be a database of ours.
    pub(super) fn prepare(path: &Path) -> Result<Self, Error> {
        let directory = directory_of(path);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(Error::file("create the directory", directory))?;
        let database = resolve(path)?;
        snapshot::finish_interrupted(&database)?;
        let log_is_empty = fs::metadata(beside(&database, "-wal")).map_or(true, |log| log.len() == 0);
        let is_empty = match fs::metadata(&database) {
            Ok(metadata) if metadata.is_file() => metadata.len() == 0,
            Ok(metadata) => return Err(Error::NotAFile { path: database, kind: kind(metadata.file_type()) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(Error::file("look at", database)(error)),
        };
        if is_empty && !log_is_empty {
            return Err(Error::MissingDatabase(database));
        }
        let lock_path = beside(&database, "-lock");
        let lock = take_lock(&lock_path, &database)?;
        if let Some(holder) = other_user(&database)? {
            return Err(Error::InUse { path: database, holder: Some(holder) });
        }
        create(&database)?;
        Ok(Self { database, lock, lock_path })
    }

    /// Whether we had the database open and did not close it.
    pub(super) fn are_marked(&self) -> Result<bool, Error> {
        let mut mark = String::new();
        let read = (&self.lock).take(64).read_to_string(&mut mark).and_then(|_| self.mark());
        match read {
            Ok(expected) => Ok(mark == expected),
            // Whatever that is, it is not our mark.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
            Err(error) => Err(Error::file("read", &self.lock_path)(error)),
        }
    }

    /// Marks the database as open, durably. The write-ahead log has to be there.
    pub(super) fn mark_open(&self) -> Result<(), Error> {
        let marked = sync(directory_of(&self.database))
            .and_then(|()| self.lock.set_len(0))
            .and_then(|()| self.lock.write_all_at(self.mark()?.as_bytes(), 0))
            .and_then(|()| self.lock.sync_all());
        marked.map_err(Error::file("write", &self.lock_path))
    }

    /// Takes the mark away, durably.
    pub(super) fn mark_closed(&self) -> Result<(), Error> {
        let cleared = self.lock.set_len(0).and_then(|()| self.lock.sync_all());
        cleared.map_err(Error::file("write", &self.lock_path))
    }

    fn mark(&self) -> io::Result<String> {
        Ok(format!("open {}\n", fs::metadata(&self.database)?.ino()))
    }
}

impl Drop for Files {
    /// A child that another thread starts at this moment has a copy of the descriptor until its exec: closing ours alone
    /// would leave the lock to it.
    fn drop(&mut self) {
        // An error changes nothing: then the lock ends with the last copy.
        let _ = self.lock.unlock();
    }
}

/// The path of a file that lies beside the database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directory in which the database lies.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Follows links, also to a file that is not there yet.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => Ok(path.to_owned()),
        Err(error) => Err(Error::file("follow the link", path)(error)),
    }
}

/// Keeps a second process of ours out.
fn take_lock(path: &Path, database: &Path) -> Result<File, Error> {
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("open", path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: database.to_owned(), holder: None }),
        Err(TryLockError::Error(source)) => Err(Error::file("lock", path)(source)),
    }
}

/// A process of somebody else's that has the database open: kine, k3s, an SQLite shell. Ask before we open it
/// ourselves: closing `-shm` drops the locks that SQLite has on it for us.
fn other_user(database: &Path) -> Result<Option<i32>, Error> {
    let path = beside(database, "-shm");
    let shm = match File::open(&path) {
        Ok(shm) => shm,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("open", path)(error)),
    };
    let mut wanted = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: SHM_IN_USE,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&shm, FcntlArg::F_GETLK(&mut wanted)).map_err(|errno| Error::file("look at", path)(errno.into()))?;
    Ok((wanted.l_type != libc::F_UNLCK as libc::c_short).then_some(wanted.l_pid))
}

/// SQLite gives the files beside the database the mode of the database.
fn create(database: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(database) {
        Ok(created) => {
            created.sync_all().map_err(Error::file("sync", database))?;
            let directory = directory_of(database);
            sync(directory).map_err(Error::file("sync the directory", directory))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::file("create", database)(error)),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn kind(file: FileType) -> &'static str {
    if file.is_dir() {
        "a directory"
    } else if file.is_fifo() {
        "a pipe"
    } else if file.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}
