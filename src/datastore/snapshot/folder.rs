//! The folder that holds a server's snapshots.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::SnapshotError;
use super::label::{Label, Snapshot};

/// Ends the names of compressed snapshots.
pub(super) const COMPRESSED: &str = ".zst";

/// A folder of snapshots. Files that begin with a dot are not its business.
#[derive(Clone, Debug)]
pub struct SnapshotFolder {
    path: PathBuf,
}

/// One file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What it says of itself; `None` if it is no snapshot, or damaged.
    pub label: Option<Label>,
}

impl SnapshotFolder {
    /// The folder at `path`, whether it is there or not.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// What is in it, oldest first; nothing if it is not there.
    ///
    /// # Errors
    /// [`SnapshotError::File`] if it cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, SnapshotError> {
        let unreadable = || SnapshotError::file("read", &self.path);
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable()(error)),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = entry.metadata().map_err(unreadable())?;
            if metadata.is_file() && !name.starts_with('.') {
                let path = entry.path();
                let label = Snapshot::open(&path).ok().map(|snapshot| snapshot.label);
                listed.push(Listed { name, path, bytes: metadata.len(), label });
            }
        }
        listed.sort_by_key(|listed| (listed.label.as_ref().map(|label| label.created), listed.name.clone()));
        Ok(listed)
    }

    /// The file that a user means: one of this folder by its name, or any by its path.
    pub fn find(&self, name_or_path: &str) -> PathBuf {
        if name_or_path.contains('/') { PathBuf::from(name_or_path) } else { self.path.join(name_or_path) }
    }

    /// Deletes snapshots by their names. A file that is no snapshot is left alone.
    ///
    /// # Errors
    /// The first one that could not be deleted; those before it are gone.
    pub fn delete(&self, names: &[String]) -> Result<(), SnapshotError> {
        for name in names {
            self.check_name(name)?;
            let path = self.path.join(name);
            Snapshot::open(&path)?;
            fs::remove_file(&path).map_err(SnapshotError::file("delete", &path))?;
            info!(path = %path.display(), "Deleted a snapshot.");
        }
        Ok(())
    }

    /// Deletes the oldest of the snapshots called `<name>-<node>-…` until `keep` are left; zero keeps all. The newest
    /// one that is whole always stays. Returns the names of the deleted ones.
    ///
    /// # Errors
    /// [`SnapshotError::File`] if the folder cannot be read or a file not deleted.
    pub fn prune(&self, name: &str, node: &str, keep: usize) -> Result<Vec<String>, SnapshotError> {
        let prefix = format!("{name}-{node}-");
        let mut newest_first = self.list()?;
        newest_first.retain(|listed| listed.label.is_some() && is_scheduled(&listed.name, &prefix));
        newest_first.reverse();
        if keep == 0 || newest_first.len() <= keep {
            return Ok(Vec::new());
        }
        let mut surplus = newest_first.split_off(keep);
        if !newest_first.iter().any(is_whole)
            && let Some(good) = surplus.iter().position(is_whole)
        {
            let good = surplus.remove(good);
            warn!(snapshot = good.name, "Keeping an old snapshot, as all newer ones are damaged.");
        }
        let names: Vec<_> = surplus.into_iter().map(|listed| listed.name).collect();
        self.delete(&names)?;
        Ok(names)
    }

    /// Refuses a name that would leave the folder or hide in it.
    pub(super) fn check_name(&self, name: &str) -> Result<(), SnapshotError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(SnapshotError::Name(name.to_owned()));
        }
        Ok(())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a snapshot of this name is one of many: only a time follows the prefix, `<name>-<node>-`.
pub fn is_scheduled(name: &str, prefix: &str) -> bool {
    scheduled_at(name, prefix).is_some()
}

/// The time in the name of one of many, in seconds of Unix time.
pub fn scheduled_at(name: &str, prefix: &str) -> Option<u64> {
    let rest = name.strip_prefix(prefix)?;
    let time = rest.strip_suffix(COMPRESSED).unwrap_or(rest);
    time.bytes().all(|byte| byte.is_ascii_digit()).then(|| time.parse().ok()).flatten()
}

fn is_whole(listed: &Listed) -> bool {
    Snapshot::open(&listed.path).and_then(|snapshot| snapshot.check()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::label::{close, tests::label};
    use super::*;

    /// A folder with a snapshot for each of these times.
    fn folder(times: &[u64]) -> (tempfile::TempDir, SnapshotFolder) {
        let directory = tempfile::tempdir().unwrap();
        for time in times {
            let path = directory.path().join(format!("hourly-edge-7-{time}"));
            fs::write(&path, "a database").unwrap();
            close(&path, Label { created: *time, ..label() }).unwrap();
        }
        let folder = SnapshotFolder::new(directory.path());
        (directory, folder)
    }

    fn names(folder: &SnapshotFolder) -> Vec<String> {
        folder.list().unwrap().into_iter().map(|listed| listed.name).collect()
    }

    #[test]
    fn pruning_leaves_the_newest_and_what_is_not_its_own() {
        let (directory, folder) = folder(&[100, 9, 30, 20]);
        for foreign in ["hourly-edge-7-extra", "hourly-edge-77-1", "notes"] {
            fs::write(directory.path().join(foreign), "mine").unwrap();
        }
        assert_eq!(folder.prune("hourly", "edge-7", 0).unwrap(), [""; 0]);
        assert_eq!(folder.prune("daily", "edge-7", 1).unwrap(), [""; 0]);
        assert_eq!(folder.prune("hourly", "edge-7", 2).unwrap(), ["hourly-edge-7-20", "hourly-edge-7-9"]);
        let left = ["hourly-edge-7-extra", "hourly-edge-77-1", "notes", "hourly-edge-7-30", "hourly-edge-7-100"];
        assert_eq!(names(&folder), left);
    }

    #[test]
    fn the_newest_whole_snapshot_is_never_pruned() {
        let (directory, folder) = folder(&[10, 20, 30]);
        let newest = directory.path().join("hourly-edge-7-30");
        let mut damaged = fs::read(&newest).unwrap();
        damaged[0] ^= 1;
        fs::write(&newest, damaged).unwrap();
        assert_eq!(folder.prune("hourly", "edge-7", 1).unwrap(), ["hourly-edge-7-10"]);
        assert_eq!(names(&folder), ["hourly-edge-7-20", "hourly-edge-7-30"]);
    }

    #[test]
    fn only_snapshots_of_the_folder_are_deleted() {
        let (directory, folder) = folder(&[10]);
        fs::write(directory.path().join("notes"), "mine").unwrap();
        let delete = |name: &str| folder.delete(&[name.to_owned()]);
        assert!(matches!(delete("notes"), Err(SnapshotError::NotASnapshot(_))));
        assert!(matches!(delete("../hourly-edge-7-10"), Err(SnapshotError::Name(_))));
        assert!(matches!(delete("gone"), Err(SnapshotError::File { .. })));
        delete("hourly-edge-7-10").unwrap();
        assert_eq!(names(&folder), ["notes"]);
    }
}
