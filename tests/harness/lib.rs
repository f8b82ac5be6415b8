//! Real nodes as namespaces: the harness of the cluster tests.
//!
//! A [`Node`] is a machine to everything that runs in it: its own network, mounts, host name, IPC, cgroups and process ids, its own state
//! on its own disk, the programs of the real machine. It runs the real `k3s` from `target/dist` and the real components. Nodes of one
//! [`Network`] reach each other, and nothing else. Several runs go at once without seeing each other, and leave nothing behind.
//!
//! Scenarios read as those of the NixOS test driver:
//!
//! ```no_run
//! use std::time::Duration;
//! use cluster_tests::{Network, Node};
//!
//! let network = Network::new();
//! let mut server = Node::boot(&network, "server");
//! server.succeed("ip address show eth0");
//! server.crash();
//! server.start();
//! server.wait_until_succeeds("busybox ping -c1 10.99.0.1", Duration::from_secs(10));
//! ```

use std::path::{Path, PathBuf};

mod cgroup;
mod cluster;
mod database;
mod init;
mod k3s;
mod machine;
mod network;
mod node;
mod read_ahead;
mod root;
mod run;
mod step;
mod warden;
mod writer;

pub use cluster::{Cluster, Store};
pub use database::Database;
pub use k3s::{LIGHT, PATIENCE, Process};
pub use network::Network;
pub use node::{Finished, Job, Node, Wire};
pub use read_ahead::UsualReadAhead;
pub use step::step;
pub use warden::node_init;
pub use writer::Writer;

/// The tree that nodes run.
pub fn dist() -> PathBuf {
    target().join("dist")
}

/// Where Cargo builds, and where `cargo xtask dist` puts what it assembles.
pub fn target() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| checkout.unwrap_or(Path::new("/")).join("target"), PathBuf::from)
}
