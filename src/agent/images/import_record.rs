//! What was imported at earlier starts, for those who want archives read once only: k3s' `.cache.json`, which counts where somebody has made
//! it, if only by `touch`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k3s_files::{self as files, FileError};
use serde::{Deserialize, Serialize};

const FILE: &str = ".cache.json";

/// The record of one folder.
#[derive(Debug)]
pub(super) struct ImportRecord {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

/// By what a file is known to be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    size: u64,
    mod_time: Timestamp,
}

impl ImportRecord {
    /// The one in `folder`, where there is one. What cannot be understood counts as empty.
    pub(super) fn open(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        let content = files::read(&path).ok().flatten()?;
        Some(Self { path, files: serde_json::from_slice(&content).unwrap_or_default() })
    }

    /// Whether a file is as it was.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|recorded| File::of(path).as_ref() == Some(recorded))
    }

    /// Remembers a file as it is.
    pub(super) fn add(&mut self, path: &Path) {
        if let Some(file) = File::of(path) {
            self.files.insert(path.to_owned(), file);
        }
    }

    /// Writes down what is known of `sources`, unless that is what the file says.
    pub(super) fn save(&mut self, sources: &[PathBuf]) -> Result<(), FileError> {
        self.files.retain(|path, _| sources.contains(path));
        let content = serde_json::to_vec(&self.files).unwrap_or_default();
        files::write(&self.path, &content, files::PRIVATE).map(drop)
    }
}

impl File {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let changed = Timestamp::try_from(metadata.modified().ok()?).ok()?;
        // Kubernetes' times, which k3s writes, have whole seconds.
        Some(Self { size: metadata.len(), mod_time: Timestamp::from_second(changed.as_second()).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_where_somebody_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, gone) = (dir.path().join("a.tar"), dir.path().join("gone.tar"));
        fs::write(&archive, "1").unwrap();
        assert!(ImportRecord::open(dir.path()).is_none());
        fs::write(dir.path().join(FILE), "").unwrap();
        let mut record = ImportRecord::open(dir.path()).unwrap();
        assert!(!record.has(&archive));
        record.add(&archive);
        record.files.insert(gone, File::of(&archive).unwrap());
        record.save(std::slice::from_ref(&archive)).unwrap();

        let record = ImportRecord::open(dir.path()).unwrap();
        assert_eq!(record.files.len(), 1);
        assert!(record.has(&archive));
        fs::write(&archive, "22").unwrap();
        assert!(!record.has(&archive));
    }

    #[test]
    fn it_is_in_k3s_form() {
        let text = r#"{"/images/a.tar":{"size":7,"modTime":"2026-01-02T03:04:05Z"}}"#;
        let files: BTreeMap<PathBuf, File> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&files).unwrap(), text);
    }
}
