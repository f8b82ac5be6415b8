//! Packaged manifests on disk.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use kube::core::DynamicObject;
use tracing::info;

use super::{
    Addons,
    manifest::{self, ManifestError},
    packaged::{PACKAGED, Packaged},
};

/// What is to be done in the cluster, once there is one.
#[derive(Debug, Default)]
pub struct Staged {
    pub(super) apply: Vec<Manifest>,
    pub(super) delete: Vec<Manifest>,
}

#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) path: PathBuf,
    pub(super) objects: Vec<DynamicObject>,
}

/// Why a packaged manifest could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The folder or a file in it.
    #[error("the packaged manifest {} could not be {doing}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file of a disabled add-on cannot be read as a manifest, so what it put into the cluster is not known.
    #[error(
        "{} belongs to a disabled add-on, but its objects cannot be told: repair it, or delete its objects and it by hand",
        .path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
}

impl Addons {
    /// Brings the folder up to date: wanted manifests are written where their content differs, those of disabled add-ons are read
    /// for what has to be deleted. Folders get mode 0700, files 0600.
    pub fn stage(&self) -> Result<Staged, StageError> {
        let mut staged = Staged::default();
        for packaged in PACKAGED {
            let path = self.folder.join(packaged.path);
            if self.disables(packaged) {
                staged.delete.extend(applied_before(path)?);
            } else if !is_skipped(&path) {
                staged.apply.push(self.write(packaged, path)?);
            }
        }
        Ok(staged)
    }

    /// An add-on is named by its file without the extension, or by a folder of it.
    fn disables(&self, packaged: &Packaged) -> bool {
        let path = Path::new(packaged.path).with_extension("");
        path.ancestors().any(|part| part.to_str().is_some_and(|name| self.disabled.contains(name)))
    }

    fn write(&self, packaged: &Packaged, path: PathBuf) -> Result<Manifest, StageError> {
        let text = packaged.render(&self.variables);
        let objects = manifest::parse(&text).map_err(|source| StageError::Unreadable { path: path.clone(), source })?;
        match fs::read(&path) {
            Ok(present) if present == text.as_bytes() => {}
            _ => {
                write(&path, &text).map_err(|source| StageError::File {
                    path: path.clone(),
                    doing: "written",
                    source,
                })?;
                info!(path = %path.display(), "Staged a packaged manifest.");
            }
        }
        Ok(Manifest { path, objects })
    }
}

/// A file that is there was applied, by us or by a k3s before us.
fn applied_before(path: PathBuf) -> Result<Option<Manifest>, StageError> {
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StageError::File { path, doing: "read", source }),
    };
    match manifest::parse(&text) {
        Ok(objects) => Ok(Some(Manifest { path, objects })),
        Err(source) => Err(StageError::Unreadable { path, source }),
    }
}

fn is_skipped(path: &Path) -> bool {
    let mut mark = path.as_os_str().to_owned();
    mark.push(".skip");
    Path::new(&mark).exists()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Hidden, as the user's files in this folder are manifests too.
    let temporary = folder.join(format!(".{}.tmp", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::addons::Variables;

    fn addons(folder: &Path, disabled: &[&str]) -> Addons {
        Addons {
            folder: folder.join("manifests"),
            disabled: disabled.iter().map(|name| (*name).to_owned()).collect(),
            variables: Variables {
                cluster_dns: vec!["10.43.0.10".parse().unwrap()],
                cluster_domain: "cluster.local".into(),
                system_default_registry: None,
                coredns_image: "k3s-rs/coredns:1.15.0".into(),
            },
        }
    }

    fn names(manifests: &[Manifest]) -> Vec<&str> {
        manifests.iter().map(|manifest| manifest.path.file_name().unwrap().to_str().unwrap()).collect()
    }

    #[test]
    fn manifests_are_staged_once_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let addons = addons(root.path(), &[]);
        assert_eq!(names(&addons.stage().unwrap().apply), ["coredns.yaml", "rolebindings.yaml", "runtimes.yaml"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let coredns = addons.folder.join("coredns.yaml");
        assert_eq!((mode(&addons.folder), mode(&coredns)), (0o700, 0o600));
        let written = fs::metadata(&coredns).unwrap().modified().unwrap();
        addons.stage().unwrap();
        assert_eq!(
            fs::metadata(&coredns).unwrap().modified().unwrap(),
            written,
            "the same content is not written again"
        );
        fs::write(&coredns, "changed: by hand").unwrap();
        addons.stage().unwrap();
        assert!(fs::read_to_string(&coredns).unwrap().contains("kube-dns"), "packaged files are ours, as in k3s");
    }

    #[test]
    fn a_disabled_addon_is_deleted_if_it_was_ever_there() {
        let root = tempfile::tempdir().unwrap();
        assert!(addons(root.path(), &["coredns"]).stage().unwrap().delete.is_empty());
        addons(root.path(), &[]).stage().unwrap();
        let staged = addons(root.path(), &["coredns"]).stage().unwrap();
        assert_eq!(
            (names(&staged.apply), names(&staged.delete)),
            (vec!["rolebindings.yaml", "runtimes.yaml"], vec!["coredns.yaml"])
        );
        assert_eq!(staged.delete[0].objects.len(), 6);
        assert!(staged.delete[0].path.exists(), "it goes after its objects");
    }

    #[test]
    fn a_skipped_addon_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let addons = addons(root.path(), &[]);
        fs::create_dir_all(&addons.folder).unwrap();
        fs::write(addons.folder.join("coredns.yaml.skip"), "").unwrap();
        assert_eq!(names(&addons.stage().unwrap().apply), ["rolebindings.yaml", "runtimes.yaml"]);
        assert!(!addons.folder.join("coredns.yaml").exists());
    }

    #[test]
    fn a_disabled_addon_that_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let addons = addons(root.path(), &["runtimes"]);
        fs::create_dir_all(&addons.folder).unwrap();
        fs::write(addons.folder.join("runtimes.yaml"), "a: [").unwrap();
        let error = addons.stage().unwrap_err().to_string();
        assert!(error.contains("runtimes.yaml belongs to a disabled add-on"), "{error}");
    }
}
