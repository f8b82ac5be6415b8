//! The CNI configuration list that tells containerd how pods are wired up.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k3s_files::{self as files, FileError};
use serde_json::{Value, json};

use crate::host::ProxyMode;

/// Its name in the CNI configuration folder, as k3s has it.
const FILE_NAME: &str = "10-flannel.conflist";
/// The bridge that our configuration puts pods on.
pub const BRIDGE: &str = "cni0";

/// Where the configuration list comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CniConfig {
    /// Ours: `flannel` (which delegates to `bridge` and `host-local`), `portmap`, `bandwidth`.
    Flannel {
        /// The `subnet.env` that `flannel` reads.
        subnet_file: PathBuf,
        /// What `portmap` makes its rules with.
        packet_filter: ProxyMode,
    },
    /// A file of the user's (`--flannel-cni-conf`), taken as it is.
    File(PathBuf),
}

/// Why there is no CNI configuration.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The user's file cannot be read.
    #[error("the CNI configuration {} cannot be read: correct --flannel-cni-conf", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user's file is not what containerd loads: the node would stay NotReady without a word.
    #[error("{} is no CNI configuration list ({reason}): it has to be a JSON object with a \"name\" and a list of \"plugins\"", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Our copy cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

impl CniConfig {
    /// Installs the list in `folder` (`<data>/agent/etc/cni/net.d`), whole or not at all; says whether it changed.
    ///
    /// # Errors
    /// The user's list cannot be read or is none, or the folder is not writable.
    pub fn install(&self, folder: &Path) -> Result<bool, CniError> {
        let content = match self {
            Self::Flannel { subnet_file, packet_filter } => {
                format!("{:#}\n", flannel(subnet_file, *packet_filter)).into_bytes()
            }
            Self::File(path) => users(path)?,
        };
        let path = folder.join(FILE_NAME);
        Ok(files::create_directory(folder, 0o700).and_then(|()| files::write(&path, &content, files::PRIVATE))?)
    }
}

fn flannel(subnet_file: &Path, packet_filter: ProxyMode) -> Value {
    let portmap_backend = match packet_filter {
        ProxyMode::Nftables => "nftables",
        ProxyMode::Iptables => "iptables",
    };
    json!({
        "name": "cbr0",
        "cniVersion": "1.0.0",
        "plugins": [
            {
                "type": "flannel",
                "subnetFile": subnet_file,
                "delegate": {
                    "bridge": BRIDGE,
                    "forceAddress": true,
                    "hairpinMode": true,
                    "ipMasq": false,
                    "isDefaultGateway": true,
                },
            },
            {"type": "portmap", "backend": portmap_backend, "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    })
}

fn users(path: &Path) -> Result<Vec<u8>, CniError> {
    let content = fs::read(path).map_err(|source| CniError::Read { path: path.into(), source })?;
    let malformed = |reason: String| CniError::Malformed { path: path.into(), reason };
    let list: Value = serde_json::from_slice(&content).map_err(|error| malformed(error.to_string()))?;
    if list["name"].as_str().is_none_or(str::is_empty) {
        return Err(malformed("it has no \"name\"".into()));
    }
    if list["plugins"].as_array().is_none_or(Vec::is_empty) {
        return Err(malformed("it has no \"plugins\"".into()));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_delegates_to_a_bridge_and_leaves_masquerading_to_us() {
        let folder = tempfile::tempdir().unwrap();
        let config =
            CniConfig::Flannel { subnet_file: "/run/flannel/subnet.env".into(), packet_filter: ProxyMode::Nftables };
        assert!(config.install(folder.path()).unwrap());
        assert!(!config.install(folder.path()).unwrap());
        let list: Value = serde_json::from_slice(&fs::read(folder.path().join(FILE_NAME)).unwrap()).unwrap();
        assert_eq!((&list["name"], &list["cniVersion"]), (&json!("cbr0"), &json!("1.0.0")));
        let plugins = list["plugins"].as_array().unwrap();
        let types: Vec<_> = plugins.iter().map(|plugin| plugin["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["flannel", "portmap", "bandwidth"]);
        assert_eq!(plugins[0]["delegate"]["ipMasq"], json!(false));
        assert_eq!(plugins[1]["backend"], json!("nftables"));
    }

    #[test]
    fn a_users_file_is_copied_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own.json");
        let text = "{ \"name\": \"mine\",\n \"plugins\": [{\"type\": \"ptp\"}] }";
        fs::write(&own, text).unwrap();
        let installed = folder.path().join("net.d");
        CniConfig::File(own).install(&installed).unwrap();
        assert_eq!(fs::read_to_string(installed.join(FILE_NAME)).unwrap(), text);
    }

    #[test]
    fn a_users_file_that_containerd_would_ignore_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own.json");
        for (text, reason) in
            [("{", "EOF"), ("{\"plugins\": [1]}", "no \"name\""), ("{\"name\": \"a\"}", "no \"plugins\"")]
        {
            fs::write(&own, text).unwrap();
            let error = CniConfig::File(own.clone()).install(folder.path()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let missing = CniConfig::File(folder.path().join("none")).install(folder.path()).unwrap_err();
        assert!(matches!(missing, CniError::Read { .. }));
    }
}
