//! The server: datastore, control plane, the front on 6443 and, unless told otherwise, a node.

mod admin_client;
mod agreement;
mod api_addresses;
mod authorities;
mod bootstrap;
mod bootstrap_data;
mod caller;
mod certificates;
mod cluster_document;
mod cluster_store;
mod controllers;
mod encryption;
mod error;
mod etcd;
mod host;
mod lost_datastore;
mod node_dialer;
mod node_passwords;
mod other_api_servers;
mod peers;
mod renewal;
mod role;
pub mod routes;
mod server_request;
mod serving_names;
mod snapshot_bucket;
mod snapshot_files;
pub mod snapshots;
mod store_health;
mod store_reach;
#[cfg(test)]
mod testing;
mod token;

pub use admin_client::{AdminClient, AdminClientSender};
pub use agreement::Disagreement;
pub use bootstrap_data::BootstrapError;
pub use encryption::EncryptionError;
pub use error::Error;
pub use etcd::{EtcdError, Reset, reset};
pub use k3s_supervisor_api::{EncryptionRequest, EncryptionStatus, Replacement};
pub use node_dialer::NodeDialer;
pub use node_passwords::{NodePasswords, OwnNode};
pub use role::run;
pub use server_request::{PinnedTokens, ServerAccess, ServerRequestError};
pub use snapshot_bucket::SnapshotBucket;
pub use token::ServerToken;
