//! The servers that a node knew when it was last on: with them it joins again after its registration address has gone for good.

use std::{collections::BTreeSet, path::PathBuf};

use k3s_files::{self as files, FileError, PRIVATE};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::Address;

/// `<data>/agent/etc/<name>.json`, in k3s' form.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    /// The URL that the node was told to register at.
    url: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Content {
    #[serde(rename = "ServerURL")]
    server_url: String,
    // Go writes null for none.
    server_addresses: Option<Vec<String>>,
}

impl StateFile {
    pub(crate) fn new(path: PathBuf, url: String) -> Self {
        Self { path, url }
    }

    /// The addresses that were stored under the same URL. A file of another cluster's, or one that a power cut tore, holds none.
    pub(crate) fn load(&self) -> Result<BTreeSet<Address>, FileError> {
        let Some(text) = files::read(&self.path)? else { return Ok(BTreeSet::new()) };
        let content: Content = match serde_json::from_slice(&text) {
            Ok(content) => content,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "The list of servers cannot be read and is made anew.");
                return Ok(BTreeSet::new());
            }
        };
        let same_cluster = content.server_url.trim_end_matches('/').eq_ignore_ascii_case(&self.url);
        let addresses = content.server_addresses.into_iter().flatten().filter(|_| same_cluster);
        Ok(addresses.filter_map(|address| address.parse().ok()).collect())
    }

    /// Replaces the file, if it says something else.
    pub(crate) fn store(&self, addresses: &BTreeSet<Address>) -> Result<(), FileError> {
        let content = Content {
            server_url: self.url.clone(),
            server_addresses: Some(addresses.iter().map(Address::to_string).collect()),
        };
        let text = serde_json::to_string_pretty(&content).expect("it is strings");
        if let Some(folder) = self.path.parent() {
            files::create_directory(folder, 0o700)?;
        }
        files::write(&self.path, text.as_bytes(), PRIVATE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(folder: &tempfile::TempDir) -> StateFile {
        StateFile::new(folder.path().join("etc/balancer.json"), "https://fixed:6443".into())
    }

    #[test]
    fn what_is_stored_is_k3s_form_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let addresses = BTreeSet::from([Address::new("192.0.2.1", 6443), Address::new("192.0.2.2", 6443)]);
        assert_eq!(file(&folder).load().unwrap(), BTreeSet::new());
        file(&folder).store(&addresses).unwrap();
        let text = fs::read_to_string(folder.path().join("etc/balancer.json")).unwrap();
        let expected = "{\n  \"ServerURL\": \"https://fixed:6443\",\n  \"ServerAddresses\": [\n    \"192.0.2.1:6443\",\n    \"192.0.2.2:6443\"\n  ]\n}";
        assert_eq!(text, expected);
        assert_eq!(file(&folder).load().unwrap(), addresses);
    }

    #[test]
    fn anothers_list_and_a_torn_one_count_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("etc")).unwrap();
        for text in [
            "",
            "\0\0",
            "{\"ServerURL\": \"https://other:6443\", \"ServerAddresses\": [\"192.0.2.1:6443\"]}",
            "{\"ServerURL\": \"https://fixed:6443\", \"ServerAddresses\": null}",
        ] {
            fs::write(folder.path().join("etc/balancer.json"), text).unwrap();
            assert_eq!(file(&folder).load().unwrap(), BTreeSet::new(), "{text}");
        }
        fs::write(
            folder.path().join("etc/balancer.json"),
            "{\"ServerURL\": \"https://Fixed:6443/\", \"ServerAddresses\": [\"192.0.2.1:6443\", \"nonsense\"]}",
        )
        .unwrap();
        assert_eq!(file(&folder).load().unwrap().len(), 1);
    }
}
