//! Certificate authorities, certificates, service-account keys and kubeconfigs, at k3s' paths and in k3s' formats.
//!
//! What exists is adopted: authorities are never replaced here (only [judged](authority_succeeds)), keys are kept, certificates are reissued only when [`renewal`]
//! finds a reason. Every file is replaced in one step ([`files`]), and only if its contents change.
//!
//! Nothing here reads a clock: the time is an argument wherever it matters.

mod agent;
mod authority;
mod certificate;
mod chain;
mod client_auth;
mod current_certificate;
mod error;
mod front;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod inventory;
mod key;
mod kubeconfig;
mod leaf;
mod node;
mod pem;
pub mod renewal;
mod request;
mod san;
mod server;
mod server_auth;
mod service;
mod succession;
mod tbs;
mod tls_policy;

use k3s_files as files;

pub use agent::{AgentPki, AgentRequest};
pub use authority::CertificateAuthority;
pub use certificate::{Certificate, Unreadable};
pub use chain::root;
pub use client_auth::{AnyClientCertificate, ClientCa, ClientIdentity, Rejection};
pub use current_certificate::{CertificateError, CurrentCertificate};
pub use error::Error;
pub use front::{FrontCertificate, ServingSecret};
pub use inventory::{Listed, NotListed, Validity};
pub use key::{PrivateKey, PublicKey, RequestError};
pub use kubeconfig::{ComponentKubeconfig, UserKubeconfig};
pub use leaf::{CertificateFiles, Lifetime, Profile, Usage};
pub use node::NodeCertificate;
pub use san::{HostName, InvalidHostName, InvalidSan, San};
pub use server::{Kubeconfigs, ServerPki, ServerRequest};
pub use server_auth::{AnyServerCertificate, client_config, system_roots};
pub use service::{NoService, Service, set_aside};
pub use succession::{Unfit, authority_succeeds, service_keys_succeed};
pub use tls_policy::TlsPolicy;
