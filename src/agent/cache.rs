//! What a node keeps of its cluster, so that it comes up when no server answers. The certificates and authorities that it needs beside
//! this lie where k3s has them.

use std::path::PathBuf;

use k3s_files::{self as files, FileError, PRIVATE};
use k3s_network::overlay::Member;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::cluster_config::ClusterConfig;

/// `<data>/agent/cluster.json`: the last configuration that a server gave.
#[derive(Debug, Clone)]
pub(crate) struct ClusterCache {
    path: PathBuf,
}

/// `<data>/agent/members.json`: the cluster's nodes with their pod ranges, this one's among them, and how they are reached.
#[derive(Debug, Clone)]
pub(crate) struct MembersCache {
    path: PathBuf,
}

/// The answer is kept as it came: a later version may read more out of it.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    /// The node that it was given to.
    node: String,
    config: Value,
}

impl ClusterCache {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was stored for the node of this name; `None` before its first join, and after a file that cannot be used.
    pub(crate) fn load(&self, node: &str) -> Result<Option<ClusterConfig>, FileError> {
        let Some(text) = files::read(&self.path)?.filter(|text| !files::is_torn(text)) else { return Ok(None) };
        let stored = match serde_json::from_slice::<Stored>(&text) {
            Ok(stored) if stored.node != node => return Ok(None),
            Ok(stored) => ClusterConfig::parse(stored.config.to_string().as_bytes()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &stored {
            warn!(path = %self.path.display(), error, "What this node kept of its cluster cannot be used; a server has to answer.");
        }
        Ok(stored.ok())
    }

    /// Keeps a server's answer, which is JSON.
    pub(crate) fn store(&self, node: &str, answer: &[u8]) -> Result<(), FileError> {
        let Ok(config) = serde_json::from_slice(answer) else { return Ok(()) };
        let stored = Stored { node: node.to_owned(), config };
        let text = serde_json::to_vec(&stored).expect("it is JSON already");
        files::write(&self.path, &text, PRIVATE)?;
        Ok(())
    }
}

impl MembersCache {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The nodes as they were last seen; none before, and after a file that cannot be used.
    pub(crate) fn load(&self) -> Result<Vec<Member>, FileError> {
        let Some(text) = files::read(&self.path)?.filter(|text| !files::is_torn(text)) else { return Ok(Vec::new()) };
        Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
            warn!(path = %self.path.display(), %error, "What this node kept of the others cannot be used; a server has to answer.");
            Vec::new()
        }))
    }

    pub(crate) fn store(&self, members: &[Member]) -> Result<(), FileError> {
        let text = serde_json::to_vec(members).expect("members are texts");
        files::write(&self.path, &text, PRIVATE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster_config::tests::CONFIG;

    #[test]
    fn an_answer_is_found_again_by_the_node_that_it_was_given_to() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ClusterCache::new(folder.path().join("cluster.json"));
        assert_eq!(cache.load("edge-1").unwrap(), None);
        cache.store("edge-1", CONFIG.as_bytes()).unwrap();
        assert_eq!(cache.load("edge-1").unwrap(), Some(ClusterConfig::parse(CONFIG.as_bytes()).unwrap()));
        assert_eq!(cache.load("edge-2").unwrap(), None);
    }

    #[test]
    fn a_torn_or_foreign_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ClusterCache::new(folder.path().join("cluster.json"));
        for text in ["", "\0\0", "my shopping list", "{\"node\": \"edge-1\", \"config\": {}}"] {
            std::fs::write(&cache.path, text).unwrap();
            assert_eq!(cache.load("edge-1").unwrap(), None, "{text}");
        }
    }

    #[test]
    fn members_outlive_a_boot() {
        let folder = tempfile::tempdir().unwrap();
        let cache = MembersCache::new(folder.path().join("members.json"));
        assert_eq!(cache.load().unwrap(), []);
        let pod_cidrs = ["10.42.3.0/24".parse().unwrap(), "fd42:0:0:3::/64".parse().unwrap()].to_vec();
        let members = [Member { name: "edge-1".into(), pod_cidrs, annotations: BTreeMap::new() }];
        cache.store(&members).unwrap();
        assert_eq!(cache.load().unwrap(), members);
        std::fs::write(&cache.path, "my shopping list").unwrap();
        assert_eq!(cache.load().unwrap(), []);
    }
}
