//! Why a server is no member, with what to do.

use std::{io, path::PathBuf};

use k3s_agent::JoinError;
use k3s_config::agent::ServerUrl;
use k3s_datastore::ClientError;
use k3s_files::FileError;
use k3s_supervisor_api::RequestError;
use sysexits::ExitCode;

/// Why this server is no member of its cluster's etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// It was one.
    #[error(
        "this server was removed from the cluster's etcd: to join again, start it with --server=https://HOST:6443 of a server that is in the \
         cluster; its data of before is then kept beside {}", dir.display()
    )]
    Removed {
        /// Its data.
        dir: PathBuf,
    },
    /// Another member is of a node of this name; most likely it was this server, whose data is lost.
    #[error(
        "the cluster's etcd has the member {member} of a node {node} still: if that was this server, run `kubectl delete node {node}` on another \
         server and start this one again; if it is another machine, give this one another --node-name"
    )]
    DuplicateName {
        /// The member's name.
        member: String,
        /// The node's.
        node: String,
    },
    /// There is no token to join with.
    #[error("--server needs the cluster's token: give the one in server/token of one of its servers as --token")]
    NoToken,
    /// It is no token, or one that lets in agents alone.
    #[error("--token is not usable to join as a server: {0}")]
    Token(#[from] k3s_identity::TokenError),
    /// The server does not take it.
    #[error("the server {server} does not accept the token: give the one in server/token there as --token")]
    Credentials {
        /// Who was asked.
        server: ServerUrl,
    },
    /// Its cluster has another store.
    #[error(
        "the server {server} has no etcd that could be joined ({why}): name one that has it with --server, start it with --cluster-init, or this one with the \
         cluster's --datastore-endpoint"
    )]
    NoEtcd {
        /// Who was asked.
        server: ServerUrl,
        /// Its own words.
        why: String,
    },
    /// A cluster on SQLite was run here, and this server is to join another one.
    #[error(
        "{} holds the state of a cluster of its own: leave --server out and give --cluster-init to move it to etcd, or choose another \
         --data-dir to join", path.display()
    )]
    Sqlite {
        /// The database.
        path: PathBuf,
    },
    /// The state of a cluster on SQLite did not get into etcd.
    #[error(
        "the cluster's state cannot be moved from {} to etcd: {why}; it is as it was, and without --cluster-init this server goes on with it",
        path.display()
    )]
    NotMoved {
        /// The database.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// There is no data to go on from.
    #[error("{} holds no member of an etcd: --cluster-reset needs the data of one, or a snapshot with --cluster-reset-restore-path", dir.display())]
    NoMember {
        /// Where it should be.
        dir: PathBuf,
    },
    /// It was done, and is asked for again: a service manager that restarts would do it for ever.
    #[error(
        "the cluster was reset already: start the server without --cluster-reset; to reset it once more, remove {} first", flag.display()
    )]
    ResetBefore {
        /// What tells so.
        flag: PathBuf,
    },
    /// It started and had no leader in all this time.
    #[error("etcd does not come up on {}: its log above says why; a snapshot may, with --cluster-reset-restore-path", dir.display())]
    NotUp {
        /// Its data.
        dir: PathBuf,
    },
    /// etcdutl did not make data of the snapshot.
    #[error("the snapshot {} cannot be restored: {why}", path.display())]
    NotRestored {
        /// The snapshot.
        path: PathBuf,
        /// etcdutl's words.
        why: String,
    },
    /// A server could not be asked, or not be believed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A server answered what makes no sense.
    #[error("the answer of {server} to {path} cannot be used: {why}")]
    Answer {
        /// Who was asked.
        server: ServerUrl,
        /// For what.
        path: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// etcd itself.
    #[error("the cluster's etcd does not take this server: {0}")]
    Client(#[from] ClientError),
    /// What etcd is asked with.
    #[error(transparent)]
    Store(#[from] k3s_datastore::Error),
    /// A file of the member's.
    #[error(transparent)]
    File(#[from] FileError),
    /// The disk does not do what etcd will need.
    #[error("{} cannot be written and synchronised ({source}): etcd needs a disk that can", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl EtcdError {
    /// The process's exit code, after sysexits.h.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Removed { .. }
            | Self::DuplicateName { .. }
            | Self::NoToken
            | Self::Token(_)
            | Self::NoEtcd { .. }
            | Self::ResetBefore { .. }
            | Self::Sqlite { .. } => ExitCode::Config,
            Self::NoMember { .. } => ExitCode::NoInput,
            Self::NotRestored { .. } => ExitCode::DataErr,
            Self::Credentials { .. } => ExitCode::NoPerm,
            Self::NotMoved { .. } | Self::NotUp { .. } | Self::Join(_) | Self::Answer { .. } | Self::Client(_) => {
                ExitCode::Unavailable
            }
            Self::Store(error) => error.exit_code(),
            Self::File(_) | Self::Disk { .. } => ExitCode::IoErr,
        }
    }

    /// Whether the same may do in a while: nobody has said no for good.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Client(_) | Self::Join(JoinError::Request(_)))
    }
}

impl From<RequestError> for EtcdError {
    fn from(error: RequestError) -> Self {
        Self::Join(error.into())
    }
}
