//! The machine as it was before a node ran on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{files, mounts, network};

/// Things that others may have where a node has its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    /// Folders, of those that a node makes or fills, and containerd's sockets.
    pub(super) files: BTreeSet<PathBuf>,
    /// Names of network namespaces, and their folder if it was mounted.
    pub(super) network_namespaces: BTreeSet<PathBuf>,
    /// nftables tables, by family and name.
    pub(super) tables: BTreeSet<String>,
    /// Kernel settings that a node changes.
    pub(super) settings: BTreeMap<PathBuf, String>,
    /// The node's own folder, with its data directory.
    pub(super) home: PathBuf,
}

impl Before {
    /// The machine as it is now, for a node whose own folder is `home`.
    pub(crate) fn now(home: &Path) -> Result<Self> {
        Ok(Self {
            files: files::files_present()?,
            network_namespaces: mounts::namespaces_present()?,
            tables: network::tables_present()?,
            settings: files::settings_now()?,
            home: home.to_owned(),
        })
    }

    /// What [`Before::save`] wrote; `None` if it did not.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(text) => {
                Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("Cannot read {}", path.display())),
        }
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&partial, path))
            .with_context(|| format!("Cannot write {}", path.display()))
    }
}
