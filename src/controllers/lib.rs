//! Controllers: what makes the cluster's objects agree with what servers and nodes know.
//!
//! ```text
//! kube-apiserver ──► ClusterView: one watch a resource ──► values and queues ──► controllers, a task each (`controller.rs`)
//! ```
//!
//! Idle, they do nothing. When the API does not answer they try again, ever more slowly; none of them fails for it.
//!
//! Where several servers share a cluster most run on each of them: each changes an object only to what the objects say, in a patch that
//! names the version it was made for, so that the second to come finds nothing to do. The others run on the server that leads
//! (`leader.rs`).

mod addons;
#[cfg(test)]
mod against_an_api;
mod api_endpoints;
mod api_servers;
mod backoff;
mod controller;
mod egress;
#[cfg(test)]
mod fake_api;
#[cfg(debug_assertions)]
mod faults;
mod leader;
mod local_storage;
mod members;
mod neighbours;
mod network_policies;
mod node;
mod node_annotations;
mod node_hosts;
mod node_passwords;
mod node_taints;
mod own_kubelet;
mod own_pods;
mod queue;
mod service_lb;
mod view;

pub use addons::{Deploy, Variables};
pub use api_endpoints::ApiEndpoints;
pub use controller::{Context, Controller, Place, Registry, Shared};
pub use egress::EgressController;
#[cfg(debug_assertions)]
pub use faults::add_faults;
pub use leader::Candidate;
pub use local_storage::RetiredLocalStorage;
pub use members::set_annotations;
pub use neighbours::Neighbour;
pub use network_policies::{PolicyChange, PolicyObjects};
pub use node::{NodeController, PROVIDER_TAINT};
pub use node_annotations::{NodeAddresses, NodeArguments, NodeMetadata, annotate};
pub use node_hosts::NodeHosts;
pub use node_passwords::{
    NodePasswordError, NodePasswordOwners, ensure_node_password, migrate_node_passwords, node_exists,
    node_password_secret, replace_node_password, tell_of_deferred,
};
pub use node_taints::TaintChange;
pub use own_pods::OwnPods;
pub use queue::reconcile_each;
pub use service_lb::{BalancedPort, RetiredServiceLb, ServiceLb};
pub use view::{ClusterView, Derived, NodeScope, Reflector, Scope};
