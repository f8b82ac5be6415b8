//! Where things lie: the checkout and the user's cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::stdout;

/// The checkout that this program was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the manifest lies in src/xtask of the checkout")
}

/// `${XDG_CACHE_HOME:-~/.cache}/k3s`.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => {
            PathBuf::from(env::var_os("HOME").context("Set HOME or XDG_CACHE_HOME: built components are kept there")?)
                .join(".cache")
        }
    };
    Ok(base.join("k3s"))
}

/// Copies the checkout without what git ignores.
pub(crate) fn copy_sources(to: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    for file in stdout(&mut git)?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let file = Path::new(std::str::from_utf8(file)?);
        let (from, to) = (root().join(file), to.join(file));
        if !from.exists() {
            continue; // Removed, and not yet committed.
        }
        fs::create_dir_all(to.parent().expect("a joined path has a parent"))?;
        fs::copy(&from, &to).with_context(|| format!("Cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The folders in `folder` that hold a `declaration`, by name.
pub(crate) fn declared(folder: &Path, declaration: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.path().join(declaration).exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
