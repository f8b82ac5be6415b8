//! registries.yaml as it is, and as it becomes while the node runs: containerd reads what is made of it at each pull.
//!
//! ```text
//! start ── check: a broken file ends the start
//! run ──── apply ── changed? ──┬─ read ──► certs.d
//!                              └─ broken ──► a warning; what was good stays
//! ```

use std::{collections::BTreeSet, fs, io, path::PathBuf, time::Duration};

use k3s_components::{DefaultEndpoint, File, Paths, Registries, RegistriesError, registries};
use k3s_config::agent::NodeConfig;
use k3s_files::{self as files, FileError};
use k3s_supervise::Supervisor;
use tracing::{info, warn};

use crate::{
    Error,
    changes::{Changes, fingerprint},
    error::chain,
};

/// In the status.
pub(crate) const WARNING: &str = "registries";
/// Editors write in several steps.
const SETTLE: Duration = Duration::from_millis(200);

/// Looks whether all of the node's registries.yaml can be followed.
///
/// # Errors
/// What cannot, with its line.
pub fn check_registries(node: &NodeConfig) -> Result<(), Error> {
    Ok(Registries::read(&node.registries).map(drop)?)
}

/// The file, and where containerd looks for what it says.
#[derive(Debug)]
pub(crate) struct RegistriesFile {
    path: PathBuf,
    certs: PathBuf,
    default: DefaultEndpoint,
}

/// A file that cannot be followed, or a folder that cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Read(#[from] RegistriesError),
    #[error(transparent)]
    Write(#[from] FileError),
}

impl RegistriesFile {
    pub(crate) fn of(node: &NodeConfig, paths: &Paths) -> Self {
        let default = if node.default_registry_endpoint { DefaultEndpoint::Tried } else { DefaultEndpoint::LeftOut };
        Self { path: node.registries.clone(), certs: paths.agent_etc(registries::CERTS_D), default }
    }

    /// Makes containerd's folder say what the file says; tells whether that was something new. What others put there stays.
    pub(crate) fn apply(&self) -> Result<bool, ApplyError> {
        let wanted = Registries::read(&self.path)?.files(&self.certs, self.default);
        let mut changed = false;
        for File { path, content } in &wanted {
            if let Some(folder) = path.parent() {
                files::create_directory(folder, 0o700)?;
            }
            changed |= files::write(path, content.as_bytes(), files::PRIVATE)?;
        }
        let wanted: BTreeSet<_> = wanted.iter().map(|file| file.path.as_path()).collect();
        for path in self.generated()? {
            if !wanted.contains(path.as_path()) {
                changed |= files::remove(&path)?;
                // One with more in it is somebody else's too.
                let _ = path.parent().map(fs::remove_dir);
            }
        }
        Ok(changed)
    }

    /// Follows the file; lives until dropped.
    pub(crate) async fn follow(&self, supervisor: &Supervisor) {
        let mut changes = Changes::new(SETTLE);
        changes.follow(self.path.parent());
        let mut seen = None;
        loop {
            let now = fingerprint(&self.path);
            if seen.as_ref() != Some(&now) {
                seen = Some(now);
                match self.apply() {
                    Ok(changed) => {
                        supervisor.clear(WARNING);
                        if changed {
                            info!(file = %self.path.display(), "Images are pulled by new settings of registries.");
                        }
                    }
                    Err(error) => {
                        let sentence = format!("{}; the settings of registries stay as they were.", chain(&error));
                        warn!("{sentence}");
                        supervisor.warn(WARNING, sentence);
                    }
                }
            }
            changes.next().await;
        }
    }

    /// The files that this, or k3s, has written.
    fn generated(&self) -> Result<Vec<PathBuf>, FileError> {
        let folders = match fs::read_dir(&self.certs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folders => folders.map_err(files::failed("list", &self.certs))?,
        };
        let mut generated = Vec::new();
        for folder in folders {
            let path = folder.map_err(files::failed("list", &self.certs))?.path().join("hosts.toml");
            // What cannot be read was not written by us.
            let is_ours =
                |content: Vec<u8>| content.split(|byte| *byte == b'\n').next() == Some(registries::HEADLINE.as_bytes());
            if files::read(&path).ok().flatten().is_some_and(is_ours) {
                generated.push(path);
            }
        }
        Ok(generated)
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    const MIRROR: &str = "mirrors:\n  docker.io:\n    endpoint: [https://mirror.example]\n\
                          configs:\n  mirror.example:\n    auth: {username: user, password: pass}\n";

    fn file(folder: &Path) -> RegistriesFile {
        RegistriesFile {
            path: folder.join("registries.yaml"),
            certs: folder.join("certs.d"),
            default: DefaultEndpoint::Tried,
        }
    }

    #[test]
    fn the_folder_says_what_the_file_says_and_keeps_what_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        let hosts = |name: &str| file.certs.join(name).join("hosts.toml");
        assert!(!file.apply().unwrap(), "without a file there is nothing to say");
        for name in ["own.example", "old.example"] {
            fs::create_dir_all(file.certs.join(name)).unwrap();
        }
        fs::write(hosts("own.example"), "server = \"https://own.example\"\n").unwrap();
        fs::write(hosts("old.example"), format!("{}\nserver = \"https://old.example\"\n", registries::HEADLINE))
            .unwrap();

        fs::write(&file.path, MIRROR).unwrap();
        assert!(file.apply().unwrap());
        assert!(!file.apply().unwrap());
        for name in ["docker.io", "mirror.example"] {
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&hosts(name)), mode(&file.certs.join(name))), (0o600, 0o700));
        }
        assert!(hosts("own.example").exists() && !file.certs.join("old.example").exists());

        fs::write(&file.path, "mirrors: [").unwrap();
        assert!(file.apply().is_err());
        assert!(hosts("docker.io").exists(), "what was good stays");

        fs::remove_file(&file.path).unwrap();
        assert!(file.apply().unwrap());
        assert_eq!(fs::read_dir(&file.certs).unwrap().count(), 1);
    }
}
