//! Packaged manifests on disk.

use std::path::{Path, PathBuf};

use k3s_files::{self as files, FileError};
use kube::core::DynamicObject;
use tracing::info;

use super::{
    Addons,
    manifest::{self, ManifestError},
    packaged::Packaged,
};

/// What one manifest asks of the cluster.
#[derive(Debug)]
pub(super) enum Task {
    Nothing,
    /// The objects are to be as the manifest says.
    Apply(Vec<DynamicObject>),
    /// The objects are to go, in this order, and then the file.
    Delete(Vec<DynamicObject>),
}

/// Why a packaged manifest could not be staged.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    /// The folder or a file in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be read as a manifest, so what it puts or put into the cluster is not known.
    #[error("the packaged manifest {} is damaged: delete it, and its objects too if its add-on is disabled", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
}

impl Addons {
    /// Where `packaged` is staged.
    pub(super) fn path(&self, packaged: &Packaged) -> PathBuf {
        self.folder.join(packaged.path)
    }

    /// Brings `packaged`'s file up to date: written if it is wanted and its content differs, read for what has to be deleted if its
    /// add-on is disabled. Folders get mode 0700, files 0600.
    pub(super) fn stage(&self, packaged: &Packaged) -> Result<Task, StageError> {
        let path = self.path(packaged);
        if self.disables(packaged) {
            return applied_before(path);
        }
        if is_skipped(&path) {
            return Ok(Task::Nothing);
        }
        let text = packaged.render(&self.variables);
        if let Some(folder) = path.parent() {
            files::create_directory(folder, 0o700)?;
        }
        if files::write(&path, text.as_bytes(), files::PRIVATE)? {
            info!(path = %path.display(), "Staged a packaged manifest.");
        }
        manifest::parse(&text).map(Task::Apply).map_err(|source| StageError::Unreadable { path, source })
    }

    /// An add-on is named by its file without the extension, or by a folder of it.
    fn disables(&self, packaged: &Packaged) -> bool {
        let path = Path::new(packaged.path).with_extension("");
        path.ancestors().any(|part| part.to_str().is_some_and(|name| self.disabled.contains(name)))
    }
}

/// A file that is there was applied, by us or by a k3s before us. What came last in it stands on what came first.
fn applied_before(path: PathBuf) -> Result<Task, StageError> {
    let Some(text) = files::read(&path)? else { return Ok(Task::Nothing) };
    match manifest::parse(&String::from_utf8_lossy(&text)) {
        Ok(objects) => Ok(Task::Delete(objects.into_iter().rev().collect())),
        Err(source) => Err(StageError::Unreadable { path, source }),
    }
}

fn is_skipped(path: &Path) -> bool {
    let mut mark = path.as_os_str().to_owned();
    mark.push(".skip");
    Path::new(&mark).exists()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::addons::{Variables, packaged::PACKAGED};

    fn addons(folder: &Path, disabled: &[&str]) -> Addons {
        Addons {
            folder: folder.join("manifests"),
            disabled: disabled.iter().map(|name| (*name).to_owned()).collect(),
            variables: Variables {
                cluster_dns: vec!["10.43.0.10".parse().unwrap()],
                cluster_domain: "cluster.local".into(),
                system_default_registry: None,
                coredns_image: "docker.io/k3s-rs/coredns:1.15.0".into(),
            },
        }
    }

    fn stage(addons: &Addons) -> Vec<(&'static str, Task)> {
        PACKAGED.iter().map(|packaged| (packaged.path, addons.stage(packaged).unwrap())).collect()
    }

    #[test]
    fn manifests_are_staged_once_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let addons = addons(root.path(), &[]);
        assert!(stage(&addons).iter().all(|(_, task)| matches!(task, Task::Apply(_))));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let coredns = addons.folder.join("coredns.yaml");
        assert_eq!((mode(&addons.folder), mode(&coredns)), (0o700, 0o600));
        let written = fs::metadata(&coredns).unwrap().modified().unwrap();
        stage(&addons);
        assert_eq!(
            fs::metadata(&coredns).unwrap().modified().unwrap(),
            written,
            "the same content is not written again"
        );
        fs::write(&coredns, "changed: by hand").unwrap();
        stage(&addons);
        assert!(fs::read_to_string(&coredns).unwrap().contains("kube-dns"), "packaged files are ours, as in k3s");
    }

    #[test]
    fn a_disabled_addon_is_deleted_if_it_was_ever_there() {
        let root = tempfile::tempdir().unwrap();
        let [coredns, ..] = PACKAGED else { unreachable!() };
        let disabled = addons(root.path(), &["coredns"]);
        assert!(matches!(disabled.stage(coredns).unwrap(), Task::Nothing));
        stage(&addons(root.path(), &[]));
        let Task::Delete(objects) = disabled.stage(coredns).unwrap() else { panic!("nothing is deleted") };
        let kinds: Vec<_> = objects.iter().map(|object| object.types.as_ref().unwrap().kind.as_str()).collect();
        assert_eq!(
            kinds,
            ["Deployment", "Service", "ConfigMap", "ClusterRoleBinding", "ClusterRole", "ServiceAccount"]
        );
        assert!(disabled.path(coredns).exists(), "it goes after its objects");
    }

    #[test]
    fn a_skipped_addon_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let addons = addons(root.path(), &[]);
        fs::create_dir_all(&addons.folder).unwrap();
        fs::write(addons.folder.join("coredns.yaml.skip"), "").unwrap();
        assert!(matches!(stage(&addons)[0], ("coredns.yaml", Task::Nothing)));
        assert!(!addons.folder.join("coredns.yaml").exists());
    }

    #[test]
    fn a_damaged_manifest_of_a_disabled_addon_is_named() {
        let root = tempfile::tempdir().unwrap();
        let addons = addons(root.path(), &["coredns"]);
        fs::create_dir_all(&addons.folder).unwrap();
        fs::write(addons.folder.join("coredns.yaml"), "a: [").unwrap();
        let error = addons.stage(&PACKAGED[0]).unwrap_err().to_string();
        assert!(error.contains("coredns.yaml is damaged: delete it"), "{error}");
    }
}
