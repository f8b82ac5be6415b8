//! Whole folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The files and links below `folder`, relative to it, sorted.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let current = folder.join(&relative);
        for entry in fs::read_dir(&current).with_context(|| format!("Cannot list {}", current.display()))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() { pending.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies what is below `from` to the same places below `to`; links stay links.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let (source, copy) = (from.join(&file), to.join(&file));
        fs::create_dir_all(copy.parent().expect("a joined path has a parent"))?;
        if source.is_symlink() {
            symlink(fs::read_link(&source)?, copy)?;
        } else {
            fs::copy(&source, &copy).with_context(|| format!("Cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}
