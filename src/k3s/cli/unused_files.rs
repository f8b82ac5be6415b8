//! Files that k3s reads and this version does not. Each start and `check-config` name them, so that nobody waits for what they ask for.

use std::path::Path;

use k3s_components::TemplateGeneration;
use k3s_config::{agent::AgentConfig, server::ServerConfig};

/// A sentence for each.
pub(super) fn of_server(config: &ServerConfig) -> Vec<String> {
    config.node.iter().flat_map(|_| of_node(&config.data_dir)).collect()
}

/// The same.
pub(super) fn of_agent(config: &AgentConfig) -> Vec<String> {
    of_node(&config.data_dir)
}

fn of_node(data_dir: &Path) -> Vec<String> {
    template(&data_dir.join("agent/etc/containerd")).into_iter().collect()
}

/// Of two templates only the newer one counts.
fn template(folder: &Path) -> Option<String> {
    let [read, unread] = TemplateGeneration::ALL.map(|generation| folder.join(generation.file_name()));
    let both = read.is_file() && unread.is_file();
    both.then(|| format!("{} is not read, since {} is there: remove one of them.", unread.display(), read.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_older_of_two_templates_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml.tmpl"), "").unwrap();
        assert_eq!(template(dir.path()), None);
        fs::write(dir.path().join("config-v3.toml.tmpl"), "").unwrap();
        assert!(template(dir.path()).unwrap().contains("config.toml.tmpl is not read, since"));
    }
}
