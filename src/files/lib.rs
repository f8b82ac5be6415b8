//! Files that survive a power cut: written beside their place, synced, renamed into it, and only if they change.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink as create_symlink},
    path::{Path, PathBuf},
};

/// For what only its owner may read: keys, tokens, kubeconfigs, and certificates too, as in k3s.
pub const PRIVATE: u32 = 0o600;
/// No file that k3s reads whole is longer: keys, certificates, tokens, kubeconfigs, and what it remembers itself.
pub const LONGEST: u64 = 8 << 20;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}{}", path.display(), remedy(source))]
pub struct FileError {
    /// What was tried: `read`, `write`, …
    pub action: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// The contents of `path`, or `None` if there is no such file.
///
/// # Errors
/// If it cannot be read, or is longer than [`LONGEST`]: no more than that is read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match read_bounded(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// The contents of a file that has to be there.
///
/// # Errors
/// As [`read`], and if there is no such file.
pub fn read_existing(path: &Path) -> Result<Vec<u8>, FileError> {
    read_bounded(path).map_err(failed("read", path))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > LONGEST { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(contents) }
}

/// Makes `path` a regular file with these contents and permission bits; tells whether the contents had to be written.
///
/// Readers see the old contents or the new, never a part, and so does the next boot.
///
/// # Errors
/// The folder is missing, full or not writable, or `path` is a directory. What was there is still there.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<bool, FileError> {
    if let Ok(found) = fs::symlink_metadata(path)
        && found.is_file()
        && found.len() == contents.len() as u64
        && read(path)?.is_some_and(|old| old == contents)
    {
        if found.permissions().mode() & 0o7777 != mode {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("set permissions of", path))?;
        }
        return Ok(false);
    }
    let new = beside(path);
    let written = write_new(&new, contents, mode)
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| sync_directory_of(path))
        .map_err(failed("write", path));
    if written.is_err() {
        // Best effort: the error to report is the first one, and the next attempt removes what is left.
        let _ = fs::remove_file(&new);
    }
    written.map(|()| true)
}

/// Makes `path` a symbolic link to `target`, replacing a file or link there; tells whether it had to.
///
/// # Errors
/// The folder is missing or not writable, or `path` is a directory.
pub fn symlink(target: &Path, path: &Path) -> Result<bool, FileError> {
    if fs::read_link(path).is_ok_and(|old| old == target) {
        return Ok(false);
    }
    let new = beside(path);
    remove_leftover(&new)
        .and_then(|()| create_symlink(target, &new))
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| sync_directory_of(path))
        .map_err(failed("create link", path))?;
    Ok(true)
}

/// Removes a file if it is there; tells whether it was.
///
/// # Errors
/// The folder is not writable, or `path` is a directory.
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory_of(path).map(|()| true).map_err(failed("remove", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Creates a directory and its missing parents with these permission bits; one that exists stays as it is.
///
/// # Errors
/// Something on the way there is no directory, or not writable.
pub fn create_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("create directory", path))
}

/// What a power cut leaves of a file whose length reached the disk before its data did: nothing, or only NUL bytes.
pub fn is_torn(contents: &[u8]) -> bool {
    contents.iter().all(|byte| *byte == 0)
}

/// For `map_err`: the failure of `action` on `path`.
pub fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError { action, path: path.to_owned(), source }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ", as the disk is full: make room on it",
        io::ErrorKind::ReadOnlyFilesystem => ", as its file system is read-only: mount it writable",
        io::ErrorKind::PermissionDenied => ": run as root",
        io::ErrorKind::FileTooLarge => ", as it is longer than 8 MiB: k3s has no such file, put the right one there",
        _ => "",
    }
}

fn write_new(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    remove_leftover(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)?;
    // Not by the mode above: the umask would narrow it.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()
}

/// The name that a replacement of `path` has until it is complete: always the same, so that crashes leave at most one.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn remove_leftover(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_is_written_once_and_again_only_if_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client-ca.key");
        assert!(write(&path, b"one", PRIVATE).unwrap());
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!write(&path, b"one", PRIVATE).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        assert!(write(&path, b"two", PRIVATE).unwrap());
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn permissions_are_set_even_if_the_contents_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k3s.yaml");
        write(&path, b"one", 0o644).unwrap();
        assert_eq!(mode(&path), 0o644);
        assert!(!write(&path, b"one", PRIVATE).unwrap());
        assert_eq!(mode(&path), PRIVATE);
    }

    #[test]
    fn a_leftover_of_a_crash_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(beside(&path), b"half").unwrap();
        assert!(write(&path, b"whole", PRIVATE).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_takes_the_place_of_a_link_without_touching_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("elsewhere"), dir.path().join("k3s.yaml"));
        fs::write(&target, b"theirs").unwrap();
        assert!(symlink(&target, &path).unwrap());
        assert!(!symlink(&target, &path).unwrap());
        assert!(write(&path, b"theirs", PRIVATE).unwrap());
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(read(&target).unwrap().unwrap(), b"theirs");
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server-ca.crt");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        for refused in [read(&path).unwrap_err(), read_existing(&path).unwrap_err()] {
            assert!(refused.to_string().ends_with("longer than 8 MiB: k3s has no such file, put the right one there"));
        }
        assert!(write(&path, b"right", PRIVATE).unwrap(), "it can be replaced");
        assert_eq!(read_existing(&path).unwrap(), b"right");
    }

    #[test]
    fn errors_name_the_path() {
        let missing = Path::new("/nonexistent/dir/file");
        assert_eq!(write(missing, b"", PRIVATE).unwrap_err().to_string(), "cannot write /nonexistent/dir/file");
        assert!(read(missing).unwrap().is_none());
    }
}
