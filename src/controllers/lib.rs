//! Controllers: what makes the cluster's objects agree with what servers and nodes know.
//!
//! Each controller is a `run` that lives until its shutdown token falls, or a function that waits for one thing and returns. All of
//! them follow watches: idle, they do nothing. When the API does not answer they try again, ever more slowly; none of them fails for it.
//!
//! Several servers run them at once, with no leader among them: each changes an object only to what the objects say, in a patch that
//! names the version it was made for, so that the second to come finds nothing to do.

mod addons;
#[cfg(test)]
mod against_an_api;
mod api_endpoints;
mod api_servers;
mod backoff;
mod egress;
mod members;
mod node;
mod node_annotations;
mod node_hosts;
mod node_passwords;
mod own_kubelet;
mod own_pods;

pub use addons::{Addons, Variables};
pub use api_endpoints::{follow_api_endpoints, publish_api_endpoint, publish_api_endpoints};
pub use backoff::Backoff;
pub use egress::run as run_egress;
pub use members::{Member, follow_members, set_annotations};
pub use node::{NodeController, PROVIDER_TAINT};
pub use node_annotations::{NodeAddresses, NodeArguments, NodeMetadata, annotate};
pub use node_hosts::run as run_node_hosts;
pub use node_passwords::{
    NodePasswordError, ensure_node_password, migrate_node_passwords, node_exists, node_password_secret,
    replace_node_password, run_node_password_owners, tell_of_deferred,
};
pub use own_kubelet::follow_own_kubelet;
pub use own_pods::{OwnPods, follow_own_pods};
