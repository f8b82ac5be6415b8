//! What a server deploys by itself, and how.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use crate::{environment::Environment, error::Error, grammar::is_dns_label, node::registry, values::Values};

/// Its packaged add-ons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddonsConfig {
    /// What is left out (`--disable`): packaged add-ons, and manifests of the server's folder by their names, whichever these are, as in k3s.
    pub disabled: BTreeSet<String>,
    /// Where k3s' load balancer has its pods (`--servicelb-namespace`). Ours has none; those that k3s left there go.
    pub service_lb_namespace: String,
    /// Host of every packaged image, replacing the one in its name (`--system-default-registry`).
    pub system_default_registry: Option<String>,
    /// Where nodes keep the volumes of the storage class `local-path` (`--default-local-storage-path`), `<data-dir>/storage` by default.
    pub local_storage: PathBuf,
}

impl AddonsConfig {
    pub(crate) fn from_values(values: &Values, data_dir: &Path, environment: &Environment) -> Result<Self, Error> {
        Ok(Self {
            disabled: values.each("disable", |text| Ok(text.trim().to_owned()))?.into_iter().collect(),
            service_lb_namespace: values.text("servicelb-namespace").parse(namespace)?,
            system_default_registry: values.given("system-default-registry").map(|g| g.parse(registry)).transpose()?,
            local_storage: match values.given("default-local-storage-path") {
                Some(given) => local_storage(given.path(environment)?).map_err(|problem| given.invalid(problem))?,
                None => data_dir.join("storage"),
            },
        })
    }

    /// Whether it is deployed.
    pub fn has(&self, addon: Addon) -> bool {
        !self.disabled.contains(addon.name())
    }
}

/// Add-ons that k3s packages, by the names that `--disable` has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addon {
    /// Cluster DNS.
    Coredns,
    /// The LoadBalancer implementation.
    Servicelb,
    /// The ingress controller.
    Traefik,
    /// The local-path provisioner.
    LocalStorage,
    /// The metrics API.
    MetricsServer,
    /// RuntimeClasses.
    Runtimes,
}

impl Addon {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Coredns, Self::Servicelb, Self::Traefik, Self::LocalStorage, Self::MetricsServer, Self::Runtimes];

    /// Their names.
    pub const NAMES: [&str; 6] = {
        let mut names = [""; 6];
        let mut index = 0;
        while index < names.len() {
            names[index] = Self::ALL[index].name();
            index += 1;
        }
        names
    };

    /// As `--disable` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coredns => "coredns",
            Self::Servicelb => "servicelb",
            Self::Traefik => "traefik",
            Self::LocalStorage => "local-storage",
            Self::MetricsServer => "metrics-server",
            Self::Runtimes => "runtimes",
        }
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let problem = || format!("`{text}` is not a namespace; write one such as kube-system");
    is_dns_label(text).then(|| text.to_owned()).ok_or_else(problem)
}

/// Refuses what the provisioner of volumes would: the root, by whatever name.
fn local_storage(path: PathBuf) -> Result<PathBuf, String> {
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if is_plain && path.file_name().is_some() {
        return Ok(path);
    }
    Err(format!("`{}` is no folder to keep volumes in; write one such as /srv/volumes", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    #[test]
    fn volumes_have_a_folder() {
        let host = Host::new();
        let folder = |args: &[&str]| host.server(args).map(|(config, _)| config.addons.local_storage);
        assert_eq!(folder(&["--data-dir=/data"]).unwrap(), Path::new("/data/storage"));
        assert_eq!(folder(&["--default-local-storage-path=volumes"]).unwrap(), host.path("volumes"));
        for path in ["/", "//", "/srv/../.."] {
            let error = folder(&[&format!("--default-local-storage-path={path}")]).unwrap_err().to_string();
            assert!(error.contains("is no folder to keep volumes in"), "{error}");
        }
    }
}
