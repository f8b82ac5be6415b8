//! The stores that are compared: all speak etcd's API.

use std::fs;

use anyhow::{Context, Result};
use cluster_tests::{Job, Node};

use super::load::{Load, Program};
use crate::component::Component;

/// Where the store of a node is served: on loopback without TLS, since that is what all of them do alike.
const ENDPOINT: &str = "http://127.0.0.1:2379";

/// The script that starts a node's store.
const START: &str = "/opt/store.sh";

/// A store, alone in a process. In the tables' order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Store {
    /// `k3s datastore serve`.
    #[value(alias = "ours")]
    K3s,
    Etcd,
    /// The one that k3s is made with, on SQLite.
    Kine,
}

/// Starts the client of the store on a node.
pub(super) fn load(node: &Node, value_bytes: u32) -> Result<Load> {
    Load::start(Program::Datastore, &node.wire(), [ENDPOINT, "--value-bytes", &value_bytes.to_string()])
}

impl Store {
    /// What it is called; also its program.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::K3s => "k3s",
            Self::Etcd => "etcd",
            Self::Kine => "kine",
        }
    }

    /// Its name with its version.
    pub(super) fn version(self) -> Result<String> {
        let version = match self {
            Self::K3s => env!("CARGO_PKG_VERSION").to_owned(),
            Self::Etcd | Self::Kine => Component::named(self.name())?.version().trim_start_matches('v').to_owned(),
        };
        Ok(format!("{} {version}", self.name()))
    }

    /// When an acknowledged write is on the disk, by its defaults.
    pub(super) fn durability(self) -> &'static str {
        match self {
            Self::K3s => "yes: `synchronous=FULL`",
            Self::Etcd => "yes: fsync of the log",
            Self::Kine => "no: `synchronous=NORMAL`",
        }
    }

    /// Puts its program, and the script that starts it, into a node. The data will lie in `folder`.
    pub(super) fn install(self, node: &Node, folder: &str) -> Result<()> {
        let name = self.name();
        let command = match self {
            // The node has it.
            Self::K3s => {
                format!("/opt/k3s/bin/k3s datastore serve --endpoint sqlite://{folder}/state.db --listen {ENDPOINT}")
            }
            Self::Etcd => format!(
                "/opt/etcd --data-dir {folder}/etcd --log-level warn --listen-peer-urls http://127.0.0.1:2380 \
                 --listen-client-urls {ENDPOINT} --advertise-client-urls {ENDPOINT}"
            ),
            // Where it starts: so it says itself how to open the database.
            Self::Kine => "/opt/kine --listen-address 127.0.0.1:2379 --metrics-bind-address 0".to_owned(),
        };
        if self != Self::K3s {
            let program = Component::named(name)?.build()?.folder.join(name);
            let inside = node.path(format!("/opt/{name}"));
            if !inside.exists() {
                fs::copy(program, inside).with_context(|| format!("Cannot copy {name} into the node"))?;
            }
        }
        node.write(START, &format!("mkdir -p {folder} && cd {folder} && exec {command}\n"));
        Ok(())
    }

    /// Starts the store that was installed last.
    pub(super) fn start(node: &Node) -> Job {
        node.background(&format!("exec sh {START}"))
    }
}
