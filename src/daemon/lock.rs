//! One process a directory.

use std::{
    fmt,
    fs::{DirBuilder, File, TryLockError},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
};

use k3s_components::Paths;

use crate::Error;

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `k3s server`
    Server,
    /// `k3s agent`
    Agent,
}

impl Role {
    /// The directory of what is the role's alone.
    fn dir(self, paths: &Paths) -> PathBuf {
        match self {
            Self::Server => paths.server(),
            Self::Agent => paths.agent(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Agent => "agent",
        })
    }
}

/// Keeps a second process off the role's directory, which is made, for as long as the file is open.
///
/// # Errors
/// [`Error::Locked`] if one is there; [`Error::File`] if the directory cannot be written.
pub fn lock(role: Role, paths: &Paths) -> Result<File, Error> {
    let dir = role.dir(paths);
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
