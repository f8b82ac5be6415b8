//! Add-ons: the manifests in a server's folder `<data>/server/manifests`, those that come with it and those of its users.
//!
//! ```text
//! packaged ──stage──► file on disk ──apply──► objects in the cluster, marked as the add-on's
//!                        │  --disable                      │
//!                        └────► objects deleted ──► file deleted
//! ```
//!
//! `folder.rs` has the rules for files, `manifest.rs` those for what is in them, `object_set.rs` the marks by which objects are found
//! again, and `deploy.rs` the order of things. All of it is k3s', so that either follows the other on one cluster.

mod addon;
mod apply;
mod backlog;
mod changes;
mod cluster;
mod deploy;
mod folder;
mod manifest;
mod object_set;
mod outcomes;
mod packaged;
mod stage;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::PathBuf};

pub use packaged::Variables;

/// Brings the manifests of one server into the cluster.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// `<data>/server/manifests`
    pub folder: PathBuf,
    /// The folder of the charts that came with the program. A packaged manifest of charts that it lacks is left out.
    pub charts: Option<PathBuf>,
    /// `--disable`: names of packaged add-ons, and of manifests in the folder.
    pub disabled: BTreeSet<String>,
    /// The names that `--disable` has for what is packaged, whether it is in a manifest or not.
    pub packaged: &'static [&'static str],
    /// What is filled into the packaged manifests.
    pub variables: Variables,
    /// The server's own name: files that go from its authoritative folders take along only what it applied from them.
    pub server: String,
}

#[cfg(test)]
impl Deploy {
    /// That of a server `server` with a folder elsewhere.
    pub(crate) fn example(folder: impl Into<PathBuf>, disabled: &[&str]) -> Self {
        Self {
            folder: folder.into(),
            charts: None,
            disabled: disabled.iter().map(|name| (*name).to_owned()).collect(),
            packaged: &["coredns", "servicelb"],
            variables: Variables {
                cluster_dns: vec!["10.43.0.10".parse().unwrap()],
                cluster_domain: "cluster.local".into(),
                system_default_registry: None,
                local_storage: "/data/storage".into(),
                preferred_address_types: "InternalIP,ExternalIP,Hostname",
            },
            server: "server".into(),
        }
    }
}

/// The label of what the add-on `name` applied.
#[cfg(test)]
pub(crate) fn hash_of(name: &str) -> String {
    object_set::ObjectSet::of(name).selector().split_once('=').unwrap().1.to_owned()
}
