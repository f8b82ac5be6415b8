//! Finding the upstream programs on this machine.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use k3s_config::server::ServerConfig;

/// What Helm is called among the components.
pub const HELM: &str = "helm";
/// What containerd looks for its shim by.
pub const SHIM: &str = "containerd-shim-runc-v2";
/// A link to `k3s` of the same name, which has one process of that shim serve all pods.
pub const SHARED_SHIM: &str = "shared-shim/containerd-shim-runc-v2";

/// What a role needs before it may write anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A server's control plane.
    ControlPlane,
    /// A node that runs pods.
    Node,
    /// A server that serves its store by these programs.
    Store(&'static [&'static str]),
    /// A server that installs Helm charts.
    Helm,
}

impl Need {
    /// What a server of this configuration needs.
    pub fn of_server(config: &ServerConfig) -> Vec<Self> {
        let mut needs = vec![Self::ControlPlane];
        needs.extend(config.node.is_some().then_some(Self::Node));
        needs.push(Self::Store(config.datastore.programs()));
        needs.extend((!config.disabled.helm_controller).then_some(Self::Helm));
        needs
    }

    /// The programs, by the names they are started under.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::ControlPlane => &["kube-apiserver", "kube-controller-manager", "kube-scheduler"],
            Self::Store(programs) => programs,
            Self::Helm => &[HELM],
            Self::Node => &[
                "containerd",
                SHIM,
                SHARED_SHIM,
                "runc",
                "kubelet",
                "kube-proxy",
                "cni/bridge",
                "cni/host-local",
                "cni/loopback",
                "cni/portmap",
                "cni/bandwidth",
                "cni/flannel",
            ],
        }
    }
}

/// The places in which components are looked for, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libexec {
    dirs: Vec<PathBuf>,
}

/// Components that are in none of the places.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "these components are missing: {}; looked in {}: install the whole package or point K3S_LIBEXEC at its libexec/k3s folder",
    names.join(", "),
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct MissingComponents {
    /// Their names.
    pub names: Vec<String>,
    /// Where they were looked for.
    pub places: Vec<PathBuf>,
}

impl Libexec {
    /// `$K3S_LIBEXEC`, then `../libexec/k3s` beside `k3s` itself, then each folder of `PATH`.
    pub fn new(k3s_libexec: Option<&OsStr>, own_executable: &Path, path: Option<&OsStr>) -> Self {
        let mut dirs = Vec::new();
        dirs.extend(k3s_libexec.filter(|dir| !dir.is_empty()).map(PathBuf::from));
        dirs.extend(own_executable.parent().and_then(Path::parent).map(|prefix| prefix.join("libexec/k3s")));
        dirs.extend(path.iter().flat_map(std::env::split_paths).filter(|dir| dir.is_absolute()));
        Self { dirs }
    }

    /// The program of this name (`cni/…` for plugins), if any place has it and it may be executed.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(name)).find(|file| is_executable(file))
    }

    /// All programs that the given needs name, or all that are missing.
    ///
    /// # Errors
    /// Those that are missing, all of them.
    pub fn require(&self, needs: &[Need]) -> Result<Components, MissingComponents> {
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for &name in needs.iter().flat_map(|need| need.programs()) {
            match self.find(name) {
                Some(file) => {
                    found.insert(name, file);
                }
                None => missing.push(name.to_owned()),
            }
        }
        if missing.is_empty() {
            Ok(Components { found })
        } else {
            Err(MissingComponents { names: missing, places: self.dirs.clone() })
        }
    }

    /// What a role with these needs starts with. `version` is Kubernetes' in this release.
    ///
    /// # Errors
    /// Components are missing, all of which are named.
    pub fn package(&self, needs: &[Need], version: &'static str) -> Result<Package, MissingComponents> {
        let (images, charts) = (self.shared("images"), self.shared("charts"));
        Ok(Package { components: self.require(needs)?, images, charts, version })
    }

    /// `share/k3s/<name>` of the same package.
    fn shared(&self, name: &str) -> Option<PathBuf> {
        self.dirs
            .iter()
            .filter_map(|dir| Some(dir.parent()?.parent()?.join("share/k3s").join(name)))
            .find(|dir| dir.is_dir())
    }
}

/// What comes with this program.
#[derive(Debug, Clone)]
pub struct Package {
    /// The upstream programs that the role needs, all found.
    pub components: Components,
    /// The folder of image archives, where there is one.
    pub images: Option<PathBuf>,
    /// The folder of Helm charts, where there is one.
    pub charts: Option<PathBuf>,
    /// Kubernetes' version.
    pub version: &'static str,
}

/// Components that were found; total for the needs they were required for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Components {
    found: BTreeMap<&'static str, PathBuf>,
}

impl Components {
    /// The program of this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.found.get(name).cloned().unwrap_or_else(|| PathBuf::from(name))
    }

    /// The folder that holds `name`.
    pub(crate) fn folder_of(&self, name: &str) -> PathBuf {
        self.path(name).parent().map(Path::to_path_buf).unwrap_or_default()
    }
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn executable(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_variable_wins_over_the_package_and_the_package_over_path() {
        let root = tempfile::tempdir().unwrap();
        let at = |dir: &str| root.path().join(dir);
        for dir in ["env", "pkg/libexec/k3s", "path"] {
            executable(&at(dir).join("runc"));
        }
        let own = at("pkg/bin/k3s");
        let path = at("path");
        let found =
            |env: Option<&Path>| Libexec::new(env.map(Path::as_os_str), &own, Some(path.as_os_str())).find("runc");
        assert_eq!(found(Some(&at("env"))), Some(at("env/runc")));
        assert_eq!(found(None), Some(at("pkg/libexec/k3s/runc")));
        fs::remove_file(at("pkg/libexec/k3s/runc")).unwrap();
        assert_eq!(found(None), Some(at("path/runc")));
    }

    #[test]
    fn every_missing_component_is_named_at_once() {
        let root = tempfile::tempdir().unwrap();
        executable(&root.path().join("kube-apiserver"));
        let libexec = Libexec::new(Some(root.path().as_os_str()), Path::new("k3s"), None);
        let missing = libexec.require(&[Need::ControlPlane]).unwrap_err();
        assert_eq!(missing.names, ["kube-controller-manager", "kube-scheduler"]);
        assert!(missing.to_string().contains("K3S_LIBEXEC"));
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_no_component() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("runc"), "").unwrap();
        assert_eq!(Libexec::new(Some(root.path().as_os_str()), Path::new("k3s"), None).find("runc"), None);
    }
}
