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

    /// The chart that keeps `packaged` from being staged: one that did not come with the program. There is none if nobody wants it.
    pub(super) fn missing_chart(&self, packaged: &Packaged) -> Option<&'static str> {
        let is_there = |name: &str| self.charts.as_ref().is_some_and(|charts| charts.join(name).is_file());
        packaged.charts().find(|name| !is_there(name)).filter(|_| self.is_wanted(&self.path(packaged)))
    }

    /// Brings `packaged`'s file up to date: written if its content differs, unless its add-on is disabled, it is skipped, or a chart of it
    /// is missing. Folders get mode 0700, files 0600.
    pub(super) fn stage(&self, packaged: &Packaged) -> Result<(), FileError> {
        let path = self.path(packaged);
        if !self.is_wanted(&path) || self.missing_chart(packaged).is_some() {
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

    fn is_wanted(&self, path: &Path) -> bool {
        !is_disabled(&self.folder, path, &self.disabled) && !is_skipped(path)
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
    fn a_manifest_of_charts_is_staged_where_they_came_along() {
        let root = tempfile::tempdir().unwrap();
        let traefik = PACKAGED.iter().find(|packaged| packaged.path == "traefik.yaml").unwrap();
        let mut deploy = deploy(root.path(), &[]);
        deploy.stage(traefik).unwrap();
        assert!(deploy.missing_chart(traefik).unwrap().starts_with("traefik-crd-"));
        assert!(!deploy.path(traefik).exists());
        deploy.disabled.insert("traefik".into());
        assert_eq!(deploy.missing_chart(traefik), None, "nobody wants it");
        deploy.disabled.clear();
        deploy.charts = Some(root.path().join("charts"));
        fs::create_dir(root.path().join("charts")).unwrap();
        for chart in traefik.charts() {
            fs::write(root.path().join("charts").join(chart), "").unwrap();
        }
        deploy.stage(traefik).unwrap();
        assert!(deploy.missing_chart(traefik).is_none() && deploy.path(traefik).exists());
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
