//! Files that others read while we write them.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Puts `content` at `path`, whole or not at all, and creates the folders above it; says whether anything was written.
/// A file that holds `content` already is left alone: its readers watch it, and flash wears.
pub(crate) fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    match fs::read(path) {
        Ok(present) if present == content => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    fs::create_dir_all(folder)?;
    // Hidden and without an extension that CNI's loader knows.
    let temporary = folder.join(format!(".{}.tmp", name.to_string_lossy()));
    let mut file = File::options().create(true).write(true).truncate(true).mode(mode).open(&temporary)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&temporary, path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/conf");
        assert!(write_if_changed(&path, b"one", 0o600).unwrap());
        assert!(!write_if_changed(&path, b"one", 0o600).unwrap());
        assert!(write_if_changed(&path, b"two", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }
}
