//! What keeps encryption from being changed.

use http::StatusCode;
use k3s_files::FileError;
use k3s_http::Status;

use super::config::{BadConfig, NoKey};
use crate::BootstrapError;

/// Why it stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// Nothing is set up.
    #[error(
        "encryption of Secrets is not set up: run `k3s secrets-encrypt enable`, start the servers again with --secrets-encryption, and \
         then run `k3s secrets-encrypt rotate-keys`"
    )]
    NotSetUp,
    /// It was set up after this server's start.
    #[error(
        "kube-apiserver was started before encryption was set up, or with an encryption-provider-config of yours: start this server \
         again with --secrets-encryption"
    )]
    NotRead,
    /// It runs no kube-apiserver.
    #[error(
        "this server runs no kube-apiserver (--disable-apiserver), which is what encrypts Secrets: run the command on a server that does, \
         or name one with --server=https://HOST:6443"
    )]
    NoKubeApiserver,
    /// It is off.
    #[error(
        "encryption of Secrets is off: switch it on with `k3s secrets-encrypt enable`, or at once with a new key by `rotate-keys`"
    )]
    Off,
    /// It has no key.
    #[error("there is no key yet: make one with `k3s secrets-encrypt rotate-keys`, which encrypts all Secrets")]
    NoKeyYet,
    /// The stage does not follow.
    #[error("incorrect stage: {stage}; {wanted}")]
    WrongStage {
        /// The one that is.
        stage: &'static str,
        /// What is possible.
        wanted: &'static str,
    },
    /// Servers differ.
    #[error("the servers do not agree: {0}")]
    Disagreement(String),
    /// Something else was done meanwhile.
    #[error("it was changed meanwhile, here or on another server: look at `k3s secrets-encrypt status`")]
    Changed,
    /// What is asked for is not known.
    #[error("{0}")]
    BadRequest(String),
    /// It takes longer than is waited for.
    #[error("it is under way and goes on by itself: `k3s secrets-encrypt status` shows when it has finished")]
    UnderWay,
    /// The stored configuration is not k3s'.
    #[error("cred/encryption-config.json is not managed by k3s: {0}")]
    BadConfig(#[from] BadConfig),
    /// No randomness.
    #[error(transparent)]
    NoKey(#[from] NoKey),
    /// The bootstrap data.
    #[error(transparent)]
    Bootstrap(Box<BootstrapError>),
    /// The files.
    #[error(transparent)]
    File(#[from] FileError),
    /// Kubernetes' API.
    #[error("the API does not answer: {0}")]
    Api(#[from] kube::Error),
    /// A Secret stays as it was.
    #[error("{secret} cannot be written again: {source}")]
    Secret {
        /// `namespace/name`
        secret: String,
        /// The API's answer.
        source: Box<kube::Error>,
    },
    /// This process ends.
    #[error("the server stops")]
    Stopped,
}

impl EncryptionError {
    /// As a client of the supervisor API sees it. k3s says 400 to all of it and tells the log what it is.
    pub(crate) fn status(&self) -> Status {
        let message = self.to_string();
        match self.code() {
            StatusCode::BAD_REQUEST => Status::bad_request(message),
            StatusCode::GATEWAY_TIMEOUT => Status::timeout(message),
            StatusCode::SERVICE_UNAVAILABLE => Status::unavailable(message),
            _ => Status::internal(message),
        }
    }

    fn code(&self) -> StatusCode {
        match self {
            Self::NotSetUp
            | Self::NotRead
            | Self::NoKubeApiserver
            | Self::Off
            | Self::NoKeyYet
            | Self::WrongStage { .. }
            | Self::Disagreement(_)
            | Self::Changed
            | Self::BadConfig(_)
            | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::UnderWay => StatusCode::GATEWAY_TIMEOUT,
            Self::Api(_) | Self::Secret { .. } | Self::Bootstrap(_) | Self::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoKey(_) | Self::File(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
