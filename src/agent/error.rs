//! What keeps a node from coming up.

use std::{io, path::PathBuf};

use k3s_components::TemplateError;

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
    /// The node's name, id or password.
    #[error(transparent)]
    Identity(#[from] k3s_identity::Error),
    /// The node's own address.
    #[error(transparent)]
    Address(#[from] k3s_network::AddressError),
    /// The CNI configuration.
    #[error(transparent)]
    Cni(#[from] k3s_network::CniError),
    /// The overlay device.
    #[error(transparent)]
    Overlay(#[from] k3s_network::overlay::OverlayError),
    /// Pods' way out of the cluster.
    #[error(transparent)]
    Nat(#[from] k3s_network::NatError),
    /// The pod range, as the API told it.
    #[error(transparent)]
    PodCidr(#[from] k3s_controllers::PodCidrError),
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
