//! What the process brings along, as plain values.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// Where parsing looks beside the command line; nothing in this crate asks the process itself.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The variables, as `std::env::vars_os` gives them.
    pub variables: HashMap<OsString, OsString>,
    /// The host's name: the node's name unless one is given.
    pub hostname: String,
    /// Where relative paths start.
    pub directory: PathBuf,
    /// The configuration file that is read if it is there and no other is named.
    pub config_file: PathBuf,
}

impl Environment {
    /// The file that k3s reads.
    pub const CONFIG_FILE: &str = "/etc/rancher/k3s/config.yaml";

    /// A variable that is set to something; k3s takes an empty one as not set.
    pub(crate) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn absolute(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }
}
