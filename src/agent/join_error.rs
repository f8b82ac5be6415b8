//! Why a server does not let a node in, or cannot.

use std::path::PathBuf;

use k3s_config::agent::ServerUrl;
use k3s_files::FileError;
use k3s_identity::CaHash;
use k3s_supervisor_api::RequestError;

use crate::cluster_config::UnusableConfig;

/// Why a node is not in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A server could not be asked.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The token was taken from another cluster, or somebody else answers at the server's address.
    #[error(
        "the token belongs to a cluster whose authority has the hash {}, but the server's has {}: give the token of this cluster, \
         or correct --server", pinned.as_str(), found.as_str()
    )]
    OtherAuthority {
        /// As the token has it.
        pinned: CaHash,
        /// As the server shows it.
        found: CaHash,
    },
    /// Neither token nor certificate is taken.
    #[error(
        "the server {server} does not accept the token: give this agent the one in server/agent-token of a server (--token)"
    )]
    Credentials {
        /// Where it was told to register.
        server: ServerUrl,
    },
    /// The name belongs to another machine.
    #[error(
        "the server {server} refuses the node name {name}: another machine has it, or this one has lost its /etc/rancher/node/password; \
         run `k3s node forget {name}` on a server if this is the machine that had it, else give this one another name with --node-name \
         or --with-node-id"
    )]
    NameTaken {
        /// Where it was told to register.
        server: ServerUrl,
        /// The name.
        name: String,
    },
    /// Nothing tells a node without a token whom to trust.
    #[error(
        "{} is empty, as after a power cut, and nothing else tells whom to trust: start this agent with its token (--token) once",
        path.display()
    )]
    LostAuthority {
        /// The file.
        path: PathBuf,
    },
    /// An answer that makes no sense.
    #[error("the server's {what} cannot be used: {why}")]
    Answer {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster is one that this node cannot be part of.
    #[error("the cluster's configuration cannot be used: {0}")]
    Config(#[from] UnusableConfig),
    /// The password file holds what no request can carry.
    #[error(
        "/etc/rancher/node/password holds characters that cannot be sent: restore the file, or remove it and run `k3s node forget` on a server"
    )]
    Password,
    /// The stored certificate does not fit its key.
    #[error("this node's own certificate cannot be used: {0}")]
    Identity(#[source] rustls::Error),
    /// Keys, certificates or kubeconfigs.
    #[error(transparent)]
    Pki(#[from] k3s_pki::Error),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl JoinError {
    /// Whether a server of the cluster knows this node or its token and does not want it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::NameTaken { .. } | Self::Credentials { .. })
    }

    /// Whether trying again cannot help: somebody has to change this node's configuration.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::OtherAuthority { .. }
            | Self::LostAuthority { .. }
            | Self::Password
            | Self::Pki(_)
            | Self::File(_) => true,
            // A refused name is let in when the server has forgotten it, as in k3s; a server may get another token or configuration.
            Self::NameTaken { .. }
            | Self::Credentials { .. }
            | Self::Config(_)
            | Self::Request(_)
            | Self::Answer { .. }
            | Self::Identity(_) => false,
        }
    }
}
