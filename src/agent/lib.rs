//! The node: containerd, kubelet, kube-proxy and the network that pods are wired to.
//!
//! A server runs it in its own process; `k3s agent` alone will run the same role after it has joined.

mod annotations;
mod api;
mod cgroup;
mod error;
mod identity;
mod images;
mod network;
mod node;
mod resolv_conf;

pub use api::client;
pub use error::Error;
pub use identity::{ETC, node_name};
pub use network::own_addresses;
pub use node::{NodeRole, Request};
