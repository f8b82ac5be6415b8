//! What keeps a node from coming up.

use std::{io, net::SocketAddr, path::PathBuf};

use k3s_components::{RegistriesError, TemplateError, UserConfigError};
use k3s_supervise::GraphError;
use sysexits::ExitCode;

use crate::join_error::JoinError;

/// A node that cannot be prepared, or cannot join its network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the node's could not be written or read.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// One of our own files could not be replaced.
    #[error(transparent)]
    Replace(#[from] k3s_files::FileError),
    /// The user's containerd template.
    #[error("{} {source}", path.display())]
    Template {
        /// The template.
        path: PathBuf,
        /// Where it cannot be followed.
        source: TemplateError,
    },
    /// A user's configuration file for kubelet or kube-proxy.
    #[error(transparent)]
    UserConfig(#[from] UserConfigError),
    /// The settings of registries.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// The node's name, id or password.
    #[error(transparent)]
    Identity(#[from] k3s_identity::Error),
    /// The node's own address.
    #[error(transparent)]
    Address(#[from] k3s_network::AddressError),
    /// The CNI configuration.
    #[error(transparent)]
    Cni(#[from] k3s_network::CniError),
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] k3s_network::overlay::OverlayError),
    /// Pods' way out of the cluster.
    #[error(transparent)]
    Nat(#[from] k3s_network::NatError),
    /// The host's addresses cannot be followed.
    #[error(transparent)]
    Netlink(#[from] k3s_network::NetlinkError),
    /// Other nodes do not learn how this one is reached.
    #[error("the API did not take what other nodes have to know to reach this one")]
    Announce(#[source] kube::Error),
    /// The load balancer's port is taken.
    #[error(
        "the load balancer cannot listen on {address} ({source}): stop the program that has the port, or choose another --lb-server-port"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No server lets the node in, and none will.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The process itself.
    #[error(transparent)]
    Daemon(#[from] k3s_daemon::Error),
    /// A program waits for something that nothing makes.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A kubeconfig of ours that cannot be used.
    #[error("the kubeconfig {} cannot be used", path.display())]
    Kubeconfig {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// The process's exit code, after sysexits.h.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Listen { .. } => ExitCode::Unavailable,
            Self::File { .. } | Self::Replace(_) | Self::Identity(k3s_identity::Error::File(_)) => ExitCode::CantCreat,
            Self::Join(JoinError::File(_) | JoinError::Pki(k3s_pki::Error::File(_))) => ExitCode::CantCreat,
            Self::Daemon(error) => error.exit_code(),
            Self::Netlink(_) => ExitCode::OsErr,
            Self::Announce(_) => ExitCode::TempFail,
            Self::Graph(_) => ExitCode::Software,
            Self::Template { .. }
            | Self::UserConfig(_)
            | Self::Registries(_)
            | Self::Identity(_)
            | Self::Address(_)
            | Self::Cni(_)
            | Self::Overlay(_)
            | Self::Nat(_)
            | Self::Join(_)
            | Self::Kubeconfig { .. } => ExitCode::Config,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
