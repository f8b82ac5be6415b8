//! The supervisor API: what servers answer to nodes and to each other on port 6443 beside Kubernetes' API.
//!
//! Paths, documents and headers are k3s', and both ends take them from here: a server's routes, an agent that joins, and the verbs that
//! have a server do something.

mod authorities;
mod bootstrap;
mod certificate;
mod client;
mod cluster;
mod headers;
mod members;
pub mod paths;
mod token;

pub use authorities::Replacement;
pub use bootstrap::{BootstrapData, File};
pub use certificate::CertificateKind;
pub use client::{Client, RequestError};
pub use cluster::{ClusterDocument, IpNetDocument, NotARange, PortRangeDocument};
pub use headers::{NODE_IP, NODE_NAME, NODE_PASSWORD, basic, bearer};
pub use members::{MemberDocument, MembersDocument};
pub use token::TokenRotation;
