//! `/etc/rancher/node`: what makes this machine the same node after its data directory is gone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use k3s_files::{self as files, PRIVATE};
use tracing::warn;

use crate::{
    error::Error,
    token::{Password, random_hex},
};

/// The node's own files.
#[derive(Debug, Clone)]
pub struct NodeFiles {
    dir: PathBuf,
}

impl NodeFiles {
    /// Below `etc` (`/etc/rancher`).
    pub fn new(etc: &Path) -> Self {
        Self { dir: etc.join("node") }
    }

    /// The node's password, drawn at the first start: a server lets nobody else have this node's name.
    ///
    /// `legacy` (`<data>/agent/node-password.txt`) is where the first releases of k3s kept it; it is moved over.
    ///
    /// # Errors
    /// If the file cannot be read or written, or there is no randomness.
    pub fn password(&self, legacy: &Path) -> Result<Password, Error> {
        match self.stored_password(legacy)? {
            Some(password) => Ok(password),
            None => {
                if self.has_lost_password() {
                    warn!(
                        path = %self.password_file().display(),
                        "The node's password is gone, as after a power cut, and is drawn anew: run `k3s node forget` with its name on a server."
                    );
                }
                let password = Password::random()?;
                self.store_password(&password)?;
                Ok(password)
            }
        }
    }

    /// The password as it lies there; `None` before the first start, and if the file is empty.
    ///
    /// # Errors
    /// If a file cannot be read, or the one of first releases cannot be moved.
    pub fn stored_password(&self, legacy: &Path) -> Result<Option<Password>, Error> {
        let path = self.password_file();
        if let (None, Some(old)) = (self.read(&path)?, self.read(legacy)?) {
            self.write(&path, &old, PRIVATE)?;
            files::remove(legacy)?;
        }
        Ok(self.read(&path)?.map(Password::new))
    }

    /// Whether there is a password file that holds nothing.
    pub fn has_lost_password(&self) -> bool {
        let path = self.password_file();
        fs::symlink_metadata(&path).is_ok() && self.read(&path).is_ok_and(|text| text.is_none())
    }

    /// Makes this the node's password.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn store_password(&self, password: &Password) -> Result<(), Error> {
        self.write(&self.password_file(), password.expose(), PRIVATE)
    }

    fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// The suffix of the node's name under `--with-node-id`: 8 hexadecimal digits, drawn once.
    ///
    /// # Errors
    /// It cannot be drawn, read or stored.
    pub fn id(&self) -> Result<String, Error> {
        self.read_or(&self.dir.join("id"), 0o644, random_hex::<4>)
    }

    fn read_or(&self, path: &Path, mode: u32, draw: impl FnOnce() -> Result<String, Error>) -> Result<String, Error> {
        if let Some(text) = self.read(path)? {
            return Ok(text);
        }
        if fs::symlink_metadata(path).is_ok() {
            warn!(path = %path.display(), "The file is empty and is written anew.");
        }
        let text = draw()?;
        self.write(path, &text, mode)?;
        Ok(text)
    }

    /// The trimmed text of a file, `None` if it is missing or holds nothing.
    fn read(&self, path: &Path) -> Result<Option<String>, Error> {
        let text = files::read(path)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        files::create_directory(&self.dir, 0o755)?;
        files::write(path, format!("{text}\n").as_bytes(), mode)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: PathBuf) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn both_are_drawn_once() {
        let etc = tempfile::tempdir().unwrap();
        let (node, legacy) = (NodeFiles::new(etc.path()), etc.path().join("node-password.txt"));
        let (password, id) = (node.password(&legacy).unwrap(), node.id().unwrap());
        assert_eq!((password.expose().len(), id.len()), (32, 8));
        assert_eq!(node.password(&legacy).unwrap(), password);
        assert_eq!(node.id().unwrap(), id);
        assert_eq!(fs::read_to_string(etc.path().join("node/password")).unwrap(), format!("{}\n", password.expose()));
        assert_eq!(mode(etc.path().join("node/password")), 0o600);
        assert_eq!(mode(etc.path().join("node/id")), 0o644);
        assert_eq!(mode(etc.path().join("node")), 0o755);
    }

    #[test]
    fn what_is_there_is_used_unless_a_power_cut_emptied_it() {
        let etc = tempfile::tempdir().unwrap();
        let (node, legacy) = (NodeFiles::new(etc.path()), etc.path().join("node-password.txt"));
        fs::create_dir(etc.path().join("node")).unwrap();
        fs::write(etc.path().join("node/password"), " mine\n").unwrap();
        assert_eq!(node.password(&legacy).unwrap().expose(), "mine");
        fs::write(etc.path().join("node/password"), [0; 33]).unwrap();
        assert!(node.has_lost_password() && node.stored_password(&legacy).unwrap().is_none());
        assert_eq!(node.password(&legacy).unwrap().expose().len(), 32);
        assert!(!node.has_lost_password());
    }

    #[test]
    fn the_password_of_k3s_first_releases_is_moved_over() {
        let etc = tempfile::tempdir().unwrap();
        let legacy = etc.path().join("node-password.txt");
        fs::write(&legacy, "old\n").unwrap();
        assert_eq!(NodeFiles::new(etc.path()).password(&legacy).unwrap().expose(), "old");
        assert!(!legacy.exists());
    }
}
