//! What a node keeps of its cluster, so that it comes up when no server answers. The certificates and authorities that it needs beside
//! this lie where k3s has them.

use std::path::PathBuf;

use ipnet::IpNet;
use k3s_files::{self as files, FileError, PRIVATE};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::cluster_config::ClusterConfig;

/// `<data>/agent/cluster.json`: the last configuration that a server gave.
#[derive(Debug, Clone)]
pub(crate) struct ClusterCache {
    path: PathBuf,
}

/// `<data>/agent/pod-cidrs.json`: the ranges that the node's pods have their addresses from.
#[derive(Debug, Clone)]
pub(crate) struct PodCidrCache {
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

impl PodCidrCache {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The ranges of the node's last life, the primary first; empty before it had any.
    pub(crate) fn load(&self) -> Vec<IpNet> {
        let text = files::read(&self.path).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub(crate) fn store(&self, ranges: &[IpNet]) -> Result<(), FileError> {
        let text = serde_json::to_vec(ranges).expect("ranges are strings");
        files::write(&self.path, &text, PRIVATE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
    fn pod_ranges_outlive_a_boot() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PodCidrCache::new(folder.path().join("pod-cidrs.json"));
        assert_eq!(cache.load(), []);
        let ranges = ["10.42.3.0/24".parse().unwrap(), "fd42:0:0:3::/64".parse().unwrap()];
        cache.store(&ranges).unwrap();
        assert_eq!(cache.load(), ranges);
    }
}
