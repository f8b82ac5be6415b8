//! The files of a database: made private to us, and locked against a second process of ours.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Makes the directory and the file, private to us, and takes the lock against a second process of ours.
pub(super) fn prepare(path: &Path) -> Result<File, Error> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("create the directory", directory))?;
    let lock_path = beside(path, "-lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(Error::file("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => return Err(Error::file("lock", &lock_path)(source)),
    }
    // SQLite gives the files beside the database the mode of the database.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(created) => {
            created.sync_all().map_err(Error::file("sync", path))?;
            let sync = File::open(directory).and_then(|directory| directory.sync_all());
            sync.map_err(Error::file("sync the directory", directory))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::file("create", path)(error)),
    }
    Ok(lock)
}

/// The path of a file that lies beside the database.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
