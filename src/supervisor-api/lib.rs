//! The supervisor API: what servers answer to nodes and to each other on port 6443 beside Kubernetes' API.
//!
//! Paths, documents and headers are k3s', and both ends take them from here: a server's routes, an agent that joins, and the verbs that
//! have a server do something. Whom a path is for, and what headers may say, is decided here; the server answers.

mod authorities;
mod authorization;
mod bootstrap;
mod certificate;
mod client;
mod cluster;
mod encryption;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod members;
mod node_claim;
pub mod paths;
mod token;

pub use authorities::Replacement;
pub use authorization::{Authorization, basic, bearer};
pub use bootstrap::{BootstrapData, File};
pub use certificate::CertificateKind;
pub use client::{Client, RequestError};
pub use cluster::{ClusterDocument, IpNetDocument, NotARange, PortRangeDocument};
pub use encryption::{EncryptionRequest, EncryptionStatus};
pub use members::{MemberDocument, MembersDocument};
pub use node_claim::{NODE_IP, NODE_NAME, NODE_PASSWORD, NodeClaim};
pub use token::TokenRotation;
