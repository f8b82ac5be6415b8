//! Files that k3s reads and this version does not. Each start and `check-config` name them, so that nobody waits for what they ask for.

use std::{fs, path::Path};

use k3s_components::TemplateGeneration;
use k3s_config::{
    agent::{AgentConfig, NodeConfig},
    server::ServerConfig,
};

/// A sentence for each.
pub(super) fn of_server(config: &ServerConfig) -> Vec<String> {
    config.node.iter().flat_map(|node| of_node(node, &config.data_dir)).collect()
}

/// The same.
pub(super) fn of_agent(config: &AgentConfig) -> Vec<String> {
    of_node(&config.node, &config.data_dir)
}

fn of_node(node: &NodeConfig, data_dir: &Path) -> Vec<String> {
    registries(&node.registries).into_iter().chain(template(&data_dir.join("agent/etc/containerd"))).collect()
}

fn registries(path: &Path) -> Option<String> {
    let is_there = fs::metadata(path).is_ok_and(|file| file.len() > 0);
    let path = path.display();
    let what = "images are pulled from where their names say, without its mirrors and credentials";
    is_there.then(|| format!("{path} is not read by this version: {what}."))
}

/// Of two templates only the newer one counts.
fn template(folder: &Path) -> Option<String> {
    let [read, unread] = TemplateGeneration::ALL.map(|generation| folder.join(generation.file_name()));
    let both = read.is_file() && unread.is_file();
    both.then(|| format!("{} is not read, since {} is there: remove one of them.", unread.display(), read.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_and_the_older_of_two_templates_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        assert_eq!(registries(&path), None);
        fs::write(&path, "mirrors: [\n").unwrap();
        assert!(registries(&path).unwrap().contains("registries.yaml is not read by this version"));
        fs::write(dir.path().join("config.toml.tmpl"), "").unwrap();
        assert_eq!(template(dir.path()), None);
        fs::write(dir.path().join("config-v3.toml.tmpl"), "").unwrap();
        assert!(template(dir.path()).unwrap().contains("config.toml.tmpl is not read, since"));
    }
}
