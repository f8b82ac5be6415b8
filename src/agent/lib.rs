//! The node: containerd, kubelet, kube-proxy and the network that pods are wired to.
//!
//! A server runs it in its own process ([`NodeRole`]); `k3s agent` runs it after it has joined one ([`run`]), and also while none answers.

mod annotations;
mod api;
mod cache;
mod cgroup;
mod changes;
mod cluster_config;
mod cri;
mod error;
mod external_ports;
mod https;
mod identity;
mod images;
mod join;
mod join_error;
mod leftovers;
mod membership;
mod metrics;
mod network;
mod network_policy;
mod node;
mod pod_network;
mod pod_shutdown;
mod reach;
mod registries;
mod resolv_conf;
mod role;
mod server_api;
mod servers;
mod service_rules;
#[cfg(test)]
mod testing;
mod trust;
mod tunnels;

pub use api::{Renewed, client, lasting_client, until_api_ready};
pub use cluster_config::UnusableConfig;
pub use error::Error;
pub use identity::{ETC, node_name};
pub use join_error::JoinError;
pub use k3s_network::overlay::VXLAN_PORT;
pub use leftovers::{Leftovers, remove_leftovers};
pub use network::{follow_own_addresses, own_addresses};
pub use node::{NodeRole, Request, ServerAuthority};
pub use pod_shutdown::{ask_to_end_pods, end_pods_with_host};
pub use reach::{KUBELET_PORT, Reachable};
pub use registries::check_registries;
pub use resolv_conf::{NO_RESOLV_CONF, resolv_conf_for_pods};
pub use role::{BALANCER, run};
pub use trust::{Trust, establish as establish_trust};
pub use tunnels::run_tunnels;
