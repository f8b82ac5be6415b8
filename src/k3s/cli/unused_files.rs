//! Files that k3s reads and this version does not. Each start and `check-config` name them, so that nobody waits for what they ask for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use k3s_components::TemplateGeneration;
use k3s_config::{
    agent::{AgentConfig, NodeConfig},
    server::ServerConfig,
};

/// The manifests that come with the server; what else lies in their folder is somebody's own.
const PACKAGED: [&str; 3] = ["coredns.yaml", "rolebindings.yaml", "runtimes.yaml"];
/// What k3s takes for a manifest.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Folders in folders that are looked through: a link may lead to itself.
const DEPTH: u32 = 8;
/// So many are named; of more the number.
const NAMED: usize = 3;

/// A sentence for each.
pub(super) fn of_server(config: &ServerConfig) -> Vec<String> {
    let node = config.node.iter().flat_map(|node| of_node(node, &config.data_dir));
    manifests(&config.data_dir.join("server/manifests")).into_iter().chain(node).collect()
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

fn manifests(folder: &Path) -> Option<String> {
    let mut found = Vec::new();
    collect(folder, DEPTH, &mut found);
    let mut names: Vec<_> = found.iter().filter_map(|path| path.strip_prefix(folder).ok()?.to_str()).collect();
    names.retain(|name| !PACKAGED.contains(name));
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.truncate(NAMED);
    let (folder, names) = (folder.display(), names.join(", "));
    let what = "apply them with `k3s kubectl apply -f`";
    (!names.is_empty())
        .then(|| format!("Manifests in {folder} are not applied by this version ({names}{more}): {what}."))
}

/// Manifests below `folder` that are not switched off by a `.skip` file; links are followed.
fn collect(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth > 0 {
                collect(&path, depth - 1, found);
            }
            continue;
        }
        let is_manifest = path.extension().is_some_and(|end| EXTENSIONS.iter().any(|known| end == *known));
        let mut skip = path.clone().into_os_string();
        skip.push(".skip");
        if is_manifest && !Path::new(&skip).exists() {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_manifests_are_those_of_the_tree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests");
        assert!(PACKAGED.iter().all(|name| Path::new(folder).join(name).is_file()));
        assert_eq!(manifests(folder.as_ref()), None);
    }

    #[test]
    fn users_manifests_are_named_and_ours_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("manifests");
        let write = |name: &str| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert_eq!(manifests(&folder), None);
        for name in ["coredns.yaml", "notes.txt", "off.yaml", "off.yaml.skip", "runtimes.yaml"] {
            write(name);
        }
        assert_eq!(manifests(&folder), None);
        for name in ["d.json", "site/a.yaml", "site/b.yml"] {
            write(name);
        }
        let told = manifests(&folder).unwrap();
        assert!(told.contains("(d.json, site/a.yaml, site/b.yml)"), "{told}");
        write("e.yaml");
        assert!(manifests(&folder).unwrap().contains("(d.json, e.yaml, site/a.yaml and 1 more)"));
    }

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
