//! Configuration files that users bring for kubelet and kube-proxy (`--kubelet-arg=config=FILE`, `config-dir=DIR`,
//! `--kube-proxy-arg=config=FILE`), as NixOS makes them of `extraKubeletConfig` and `extraKubeProxyConfig`.
//!
//! What they say goes above our defaults and below the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k3s_config::agent::NodeConfig;
use k3s_files::{self as files, FileError};
use serde_json::Value;

use crate::launch::File;

/// A kind of configuration that a component reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    api_version: &'static str,
    kind: &'static str,
}

const KUBELET: Kind = Kind { api_version: "kubelet.config.k8s.io/v1beta1", kind: "KubeletConfiguration" };
pub(crate) const KUBE_PROXY_API: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(crate) const KUBE_PROXY_KIND: &str = "KubeProxyConfiguration";
const KUBE_PROXY: Kind = Kind { api_version: KUBE_PROXY_API, kind: KUBE_PROXY_KIND };

/// What k3s calls its copy of a user's file in kubelet's folder of drop-ins, and its copy of a user's folder.
const FILE: &str = "10-cli-config.conf";
const FOLDER: &str = "20-cli-config-dir";
/// What kubelet reads of a folder.
const EXTENSION: &str = "conf";

/// Users' files, read and looked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserConfigs {
    /// Copies for kubelet's folder of drop-ins, by their names in it, in the order in which kubelet reads them.
    drop_ins: Vec<(PathBuf, String)>,
    /// What they say together.
    pub(crate) kubelet: Value,
    /// What the user's file for kube-proxy says.
    pub(crate) kube_proxy: Option<Value>,
}

/// A user's file that a component would not take.
#[derive(Debug, thiserror::Error)]
pub enum UserConfigError {
    /// It is not there, may not be read, or is too long.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder cannot be looked through.
    #[error("{} cannot be read ({source}): check that it is a folder and may be read", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of other bytes.
    #[error("{} is not UTF-8 text: write it as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// It says something else than it has to.
    #[error("{} is no {kind}: {why}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What it has to be.
        kind: &'static str,
        /// What is wrong and what to do.
        why: String,
    },
}

impl UserConfigs {
    /// Reads what `config` names. `drop_in_folder` is kubelet's own: a user who names that means what is in it already.
    ///
    /// # Errors
    /// Files that cannot be read, and files of another kind than they are given for.
    pub fn read(config: &NodeConfig, drop_in_folder: &Path) -> Result<Self, UserConfigError> {
        let mut configs = Self { kubelet: Value::Object(serde_json::Map::new()), ..Self::default() };
        if let Some(path) = config.kubelet_config.as_deref().filter(|path| !path.starts_with(drop_in_folder)) {
            configs.add_drop_in(path, FILE.into())?;
        }
        if let Some(folder) = config.kubelet_config_dir.as_deref().filter(|path| !path.starts_with(drop_in_folder)) {
            for path in drop_ins(folder)? {
                let name = Path::new(FOLDER).join(path.strip_prefix(folder).unwrap_or(&path));
                configs.add_drop_in(&path, name)?;
            }
        }
        if let Some(path) = &config.kube_proxy_config {
            configs.kube_proxy = Some(KUBE_PROXY.parse(path, &read_existing(path)?)?);
        }
        Ok(configs)
    }

    /// kubelet's drop-ins of the user, in its `folder`.
    pub(crate) fn drop_ins(&self, folder: &Path) -> impl Iterator<Item = File> {
        self.drop_ins.iter().map(|(name, content)| File { path: folder.join(name), content: content.clone() })
    }

    /// Takes copies that an earlier start left in kubelet's `folder` away; what is still meant is written again.
    ///
    /// # Errors
    /// A copy that cannot be removed, with its path.
    pub fn remove_earlier(folder: &Path) -> Result<(), (PathBuf, io::Error)> {
        let file = folder.join(FILE);
        let copies = folder.join(FOLDER);
        let ended = fs::remove_file(&file).map_err(|error| (file, error));
        let ended = [ended, fs::remove_dir_all(&copies).map_err(|error| (copies, error))];
        let is_there = |ended: &Result<(), (PathBuf, io::Error)>| !matches!(ended, Err((_, error)) if error.kind() == io::ErrorKind::NotFound);
        ended.into_iter().filter(is_there).collect()
    }

    fn add_drop_in(&mut self, path: &Path, name: PathBuf) -> Result<(), UserConfigError> {
        let text = read_existing(path)?;
        merge(&mut self.kubelet, KUBELET.parse(path, &text)?);
        self.drop_ins.push((name, text));
        Ok(())
    }
}

impl Kind {
    fn parse(self, path: &Path, text: &str) -> Result<Value, UserConfigError> {
        let wrong = |why: String| UserConfigError::Wrong { path: path.to_owned(), kind: self.kind, why };
        let value: Value = serde_saphyr::from_str(text).map_err(|error| {
            // What follows shows the lines around it.
            let told = error.to_string();
            wrong(format!("{}; correct it", told.lines().next().unwrap_or_default()))
        })?;
        if value["apiVersion"] != self.api_version || value["kind"] != self.kind {
            let begin = format!("let it begin with `apiVersion: {}` and `kind: {}`", self.api_version, self.kind);
            return Err(wrong(begin));
        }
        Ok(value)
    }
}

/// `patch` over `base`, as kubelet merges drop-ins (JSON merge patch, RFC 7396).
pub(crate) fn merge(base: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !base.is_object() {
                *base = Value::Object(serde_json::Map::new());
            }
            for (name, value) in fields {
                match value {
                    Value::Null => drop(base.as_object_mut().and_then(|base| base.remove(&name))),
                    value => merge(&mut base[name], value),
                }
            }
        }
        value => *base = value,
    }
}

/// The text of a file; `None` if it is not there.
///
/// # Errors
/// As [`k3s_files::read`], and if it is no text.
pub(crate) fn read(path: &Path) -> Result<Option<String>, UserConfigError> {
    let text = files::read(path)?.map(String::from_utf8).transpose();
    text.map_err(|_| UserConfigError::NotText { path: path.to_owned() })
}

fn read_existing(path: &Path) -> Result<String, UserConfigError> {
    String::from_utf8(files::read_existing(path)?).map_err(|_| UserConfigError::NotText { path: path.to_owned() })
}

/// What kubelet would read of a folder, in its order: by name, folders in it where their names stand.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, UserConfigError> {
    let unreadable = |source| UserConfigError::Folder { path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(unreadable)?;
    let mut entries = entries.collect::<io::Result<Vec<_>>>().map_err(unreadable)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.path();
        // A link to a folder is none to kubelet.
        if entry.file_type().map_err(unreadable)?.is_dir() {
            found.extend(drop_ins(&path)?);
        } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::config;

    fn read_all(args: &[String], folder: &Path) -> Result<UserConfigs, UserConfigError> {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        UserConfigs::read(&config(&args).node.unwrap(), folder)
    }

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    #[test]
    fn a_file_and_a_folder_become_drop_ins_in_kubelets_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("{HEAD}{text}")).unwrap();
            path.display().to_string()
        };
        let file = write("mine.yaml", "evictionHard: {memory.available: 5%}\nmaxPods: 1\n");
        write("folder/20-b.conf", "maxPods: 3\n");
        write("folder/10-a/z.conf", "maxPods: 2\npodsPerCore: 7\n");
        write("folder/README", "maxPods: 4\n");
        let folder = dir.path().join("folder").display().to_string();
        let args = [format!("--kubelet-arg=config={file}"), format!("--kubelet-arg=config-dir={folder}")];
        let read = read_all(&args, Path::new("/own")).unwrap();
        let names: Vec<_> = read.drop_ins(Path::new("/own")).map(|file| file.path).collect();
        let expected = ["10-cli-config.conf", "20-cli-config-dir/10-a/z.conf", "20-cli-config-dir/20-b.conf"];
        assert_eq!(names, expected.map(|name| Path::new("/own").join(name)));
        assert_eq!((&read.kubelet["maxPods"], &read.kubelet["podsPerCore"]), (&json!(3), &json!(7)));
        // What lies there already is not copied into itself.
        assert_eq!(read_all(&args, dir.path()).unwrap().drop_ins(dir.path()).count(), 0);
    }

    #[test]
    fn a_file_of_another_kind_is_refused_with_what_it_has_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.yaml");
        for (arg, text, expected) in [
            (
                "kubelet-arg",
                "maxPods: 1\n",
                "is no KubeletConfiguration: let it begin with `apiVersion: kubelet.config.k8s.io/v1beta1`",
            ),
            ("kube-proxy-arg", HEAD, "is no KubeProxyConfiguration: let it begin with"),
            ("kubelet-arg", "a: [\n", "is no KubeletConfiguration: "),
        ] {
            fs::write(&path, text).unwrap();
            let error = read_all(&[format!("--{arg}=config={}", path.display())], Path::new("/own")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn merging_is_a_merge_patch() {
        let mut base = json!({"a": {"b": 1, "c": 2}, "d": [1], "e": 1});
        merge(&mut base, json!({"a": {"b": null, "c": {"x": 1}}, "d": [2, 3], "f": {"g": null}}));
        assert_eq!(base, json!({"a": {"c": {"x": 1}}, "d": [2, 3], "e": 1, "f": {}}));
    }
}
