//! Packaged manifests on disk.

use std::path::{Path, PathBuf};

use k3s_files::{self as files, FileError};
use tracing::info;

use super::{Deploy, folder::is_disabled, packaged::Packaged};

impl Deploy {
    /// Where `packaged` is staged.
    pub(super) fn path(&self, packaged: &Packaged) -> PathBuf {
        self.folder.join(packaged.path)
    }

    /// Brings `packaged`'s file up to date: written if its content differs, unless its add-on is disabled or it is skipped. Folders get
    /// mode 0700, files 0600.
    pub(super) fn stage(&self, packaged: &Packaged) -> Result<(), FileError> {
        let path = self.path(packaged);
        if is_disabled(&self.folder, &path, &self.disabled) || is_skipped(&path) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            files::create_directory(folder, 0o700)?;
        }
        if files::write(&path, packaged.render(&self.variables).as_bytes(), files::PRIVATE)? {
            info!(path = %path.display(), "Staged a packaged manifest.");
        }
        Ok(())
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
    use crate::addons::packaged::PACKAGED;

    fn deploy(folder: &Path, disabled: &[&str]) -> Deploy {
        Deploy::example(folder.join("manifests"), disabled)
    }

    fn stage(deploy: &Deploy) {
        PACKAGED.iter().for_each(|packaged| deploy.stage(packaged).unwrap());
    }

    #[test]
    fn manifests_are_staged_once_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let deploy = deploy(root.path(), &[]);
        stage(&deploy);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let coredns = deploy.folder.join("coredns.yaml");
        assert_eq!((mode(&deploy.folder), mode(&coredns)), (0o700, 0o600));
        let written = fs::metadata(&coredns).unwrap().modified().unwrap();
        stage(&deploy);
        let again = fs::metadata(&coredns).unwrap().modified().unwrap();
        assert_eq!(again, written, "the same content is not written again");
        fs::write(&coredns, "changed: by hand").unwrap();
        stage(&deploy);
        assert!(fs::read_to_string(&coredns).unwrap().contains("kube-dns"), "packaged files are ours, as in k3s");
    }

    #[test]
    fn a_disabled_or_skipped_addon_is_not_staged() {
        let root = tempfile::tempdir().unwrap();
        let deploy = deploy(root.path(), &["coredns"]);
        fs::create_dir_all(&deploy.folder).unwrap();
        fs::write(deploy.folder.join("runtimes.yaml.skip"), "").unwrap();
        stage(&deploy);
        let is_there = |name: &str| deploy.folder.join(name).exists();
        assert_eq!(
            [is_there("coredns.yaml"), is_there("runtimes.yaml"), is_there("rolebindings.yaml")],
            [false, false, true]
        );
    }
}
