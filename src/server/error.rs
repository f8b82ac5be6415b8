//! What keeps a server from coming up, and with which exit code it says so.

use std::{io, net::SocketAddr, path::PathBuf};

use k3s_datastore::snapshot::SnapshotError;
use k3s_files::FileError;
use k3s_s3::S3Error;
use k3s_supervise::GraphError;
use sysexits::ExitCode;

use crate::{BootstrapError, EncryptionError, EtcdError, agreement::Disagreement};

/// A server that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port that has to be ours is taken, or its address is not this host's.
    #[error("cannot listen on {address} ({source}): {}", remedy(source))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file or directory of the server's could not be made or read.
    #[error("{} cannot be used ({source}): the data directory has to be writable and have free space; choose another with --data-dir", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that is replaced as a whole could not be.
    #[error(transparent)]
    Replace(#[from] FileError),
    /// The disk is as good as full.
    #[error("the disk of {} is full: {free} MiB are free and a start needs {needed}; make room, or choose another --data-dir", path.display())]
    NoRoom {
        /// The server's directory.
        path: PathBuf,
        /// MiB that are free.
        free: u64,
        /// MiB that are needed.
        needed: u64,
    },
    /// A name or address that no certificate can hold.
    #[error("{text} cannot stand on a certificate: {source}")]
    Name {
        /// As it was given.
        text: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificates, keys or kubeconfigs.
    #[error(transparent)]
    Pki(#[from] k3s_pki::Error),
    /// Tokens or the node's identity.
    #[error(transparent)]
    Identity(#[from] k3s_identity::Error),
    /// The datastore's bootstrap data and this server do not fit together.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// This server is not to join its cluster.
    #[error(transparent)]
    Disagreement(#[from] Disagreement),
    /// Encryption of Secrets cannot be set up.
    #[error("encryption of Secrets cannot be set up: {0}")]
    Encryption(#[from] EncryptionError),
    /// A snapshot could not be taken or restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The bucket that snapshots go to.
    #[error(transparent)]
    Bucket(Box<S3Error>),
    /// A snapshot is asked for by a name in no bucket.
    #[error("no bucket is known that the snapshot could be in: give --etcd-s3 with its settings")]
    NoBucket,
    /// What describes that bucket cannot be used.
    #[error(
        "the Secret kube-system/{name} does not describe a bucket for snapshots ({why}): correct it, or give the settings as --etcd-s3-… themselves, as a server that is restored has to"
    )]
    BucketSecret {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Snapshots are of what a server itself holds.
    #[error(
        "the cluster's state is not on this server, but kept by an external datastore (--datastore-endpoint) or by servers with etcd: take and restore its snapshots there"
    )]
    KeptElsewhere,
    /// There is nothing to take a snapshot of.
    #[error("{} is not there: a snapshot needs the datastore of a server that has run; name its directory with --data-dir", path.display())]
    NoDatastore {
        /// The database.
        path: PathBuf,
    },
    /// The datastore is empty, and was not.
    #[error(
        "the datastore {place} holds nothing, but this server has run a cluster: put the database back or restore a snapshot with `k3s snapshot restore`; if an empty cluster is meant, remove {} and start again", trace.display()
    )]
    LostDatastore {
        /// The database, or the flag that names it.
        place: String,
        /// What tells of the cluster.
        trace: PathBuf,
    },
    /// The database is in use, and not by a server that answers.
    #[error("the datastore is in use, but its server does not answer on {} ({source}): is it starting or stopping?", socket.display())]
    NoServer {
        /// Where it was asked.
        socket: PathBuf,
        /// Why there is no answer.
        source: io::Error,
    },
    /// There is nobody to take a snapshot.
    #[error("no server answers on {} ({source}): a snapshot of etcd is taken by a running server", socket.display())]
    NotRunning {
        /// Where it was asked.
        socket: PathBuf,
        /// Why there is no answer.
        source: io::Error,
    },
    /// The running server's own sentence.
    #[error("{0}")]
    Refused(String),
    /// A certificate of ours that TLS does not take.
    #[error("{}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The datastore could not open, or stopped by itself.
    #[error(transparent)]
    Datastore(#[from] k3s_datastore::Error),
    /// This server's member of etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The node's part.
    #[error(transparent)]
    Node(#[from] k3s_agent::Error),
    /// The process itself.
    #[error(transparent)]
    Daemon(#[from] k3s_daemon::Error),
    /// A program waits for something that nothing makes.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Error {
    /// The process's exit code, after sysexits.h.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Listen { .. }
            | Self::Node(k3s_agent::Error::Listen { .. })
            | Self::NoServer { .. }
            | Self::NotRunning { .. }
            | Self::Refused(_) => ExitCode::Unavailable,
            Self::Snapshot(
                SnapshotError::NotASnapshot(_)
                | SnapshotError::Damaged { .. }
                | SnapshotError::Newer { .. }
                | SnapshotError::OtherStore { .. },
            )
            | Self::LostDatastore { .. } => ExitCode::DataErr,
            Self::Bucket(error) => match error.as_ref() {
                S3Error::NoObject { .. } => ExitCode::NoInput,
                S3Error::File { .. } | S3Error::TooLarge { .. } => ExitCode::CantCreat,
                S3Error::Key { .. } | S3Error::Denied { .. } => ExitCode::NoPerm,
                S3Error::NoBucket { .. } | S3Error::Authority { .. } | S3Error::Region { .. } => ExitCode::Config,
                _ => ExitCode::Unavailable,
            },
            Self::BucketSecret { .. } | Self::NoBucket => ExitCode::Config,
            Self::NoDatastore { .. } => ExitCode::NoInput,
            Self::File { .. }
            | Self::Replace(_)
            | Self::NoRoom { .. }
            | Self::Pki(k3s_pki::Error::File(_))
            | Self::Identity(k3s_identity::Error::File(_))
            | Self::Bootstrap(BootstrapError::File(_))
            | Self::Snapshot(
                SnapshotError::File { .. } | SnapshotError::NoRoom { .. } | SnapshotError::NoRoomToRestore { .. },
            )
            | Self::Node(k3s_agent::Error::Replace(_)) => ExitCode::CantCreat,
            Self::Snapshot(SnapshotError::UnderWay | SnapshotError::Etcd(_)) => ExitCode::TempFail,
            Self::Snapshot(SnapshotError::Name(_)) | Self::KeptElsewhere => ExitCode::Usage,
            Self::Datastore(error) | Self::Snapshot(SnapshotError::Store(error)) => error.exit_code(),
            Self::Bootstrap(BootstrapError::Datastore(_) | BootstrapError::Damaged { .. }) => ExitCode::IoErr,
            Self::Name { .. }
            | Self::Pki(_)
            | Self::Identity(_)
            | Self::Bootstrap(_)
            | Self::Disagreement(_)
            | Self::Certificate { .. }
            | Self::Node(_) => ExitCode::Config,
            Self::Etcd(error) => error.exit_code(),
            Self::Daemon(error) => error.exit_code(),
            Self::Encryption(EncryptionError::File(_)) => ExitCode::CantCreat,
            Self::Encryption(_) | Self::Graph(_) => ExitCode::Software,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program that has it, or choose another --https-listen-port",
        io::ErrorKind::AddrNotAvailable => "give an address of this host as --bind-address",
        _ => "choose another --bind-address or --https-listen-port",
    }
}
