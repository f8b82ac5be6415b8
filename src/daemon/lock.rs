//! One process a directory.

use std::{
    fs::{DirBuilder, File, TryLockError},
    os::unix::fs::DirBuilderExt as _,
};

use k3s_components::Paths;
use k3s_config::Role;

use crate::Error;

/// Keeps a second process off the role's directory, which is made, for as long as the file is open.
///
/// # Errors
/// [`Error::Locked`] if one is there; [`Error::File`] if the directory cannot be written.
pub fn lock(role: Role, paths: &Paths) -> Result<File, Error> {
    let dir = match role {
        Role::Server => paths.server(),
        Role::Agent => paths.agent(),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::file(&dir))?;
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(Error::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { role, path: paths.data().to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(Error::File { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_process_of_a_role() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let first = lock(Role::Server, &paths).unwrap();
        let second = lock(Role::Server, &paths).unwrap_err().to_string();
        assert!(second.starts_with("another k3s server runs on "), "{second}");
        let _agent = lock(Role::Agent, &paths).unwrap();
        drop(first);
        lock(Role::Server, &paths).unwrap();
    }
}
