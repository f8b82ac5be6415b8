//! Why a bucket is of no use, each in one sentence that says what to do.

use std::{io, path::PathBuf, time::Duration};

/// None holds a key.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// Nobody accepts a connection.
    #[error(
        "S3 at {endpoint} cannot be reached ({why}): is --etcd-s3-endpoint right, and does the network let through to it?"
    )]
    Unreachable {
        /// Who was asked.
        endpoint: String,
        /// Why not.
        why: String,
    },
    /// Whoever answers is not who it should be.
    #[error(
        "the certificate of S3 at {endpoint} is not trusted ({why}): give the authority that signed it as --etcd-s3-endpoint-ca"
    )]
    Untrusted {
        /// Who was asked.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// No TLS.
    #[error("there is no TLS with S3 at {endpoint} ({why}): if it serves HTTP alone, give --etcd-s3-insecure")]
    Handshake {
        /// Who was asked.
        endpoint: String,
        /// What failed.
        why: String,
    },
    /// The proxy does not let through.
    #[error("the proxy on the way to S3 at {endpoint} answers {status}: correct --etcd-s3-proxy")]
    Proxy {
        /// Who was asked for.
        endpoint: String,
        /// Its answer.
        status: u16,
    },
    /// An authority that cannot be used.
    #[error("{place} is no authority for S3's certificate ({why}): give certificates as PEM in --etcd-s3-endpoint-ca")]
    Authority {
        /// The file.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// It took too long.
    #[error("S3 at {endpoint} was not done after {} s: try again, or give more time by --etcd-s3-timeout", .after.as_secs())]
    Timeout {
        /// Who was asked.
        endpoint: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection with S3 at {endpoint} broke off ({why}): try again")]
    Broken {
        /// Who was asked.
        endpoint: String,
        /// How.
        why: String,
    },
    /// There is no such bucket.
    #[error("there is no bucket {bucket} at {endpoint}: make it, or correct --etcd-s3-bucket")]
    NoBucket {
        /// Its name.
        bucket: String,
        /// Who was asked.
        endpoint: String,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {location}: `k3s etcd-snapshot ls` with the same bucket lists what there is")]
    NoObject {
        /// Where it would be.
        location: String,
    },
    /// The key is wrong.
    #[error(
        "S3 at {endpoint} does not accept the key ({message}): correct --etcd-s3-access-key and --etcd-s3-secret-key"
    )]
    Key {
        /// Who was asked.
        endpoint: String,
        /// S3's own words.
        message: String,
    },
    /// The key is right and not enough.
    #[error(
        "the key may not do this in the bucket {bucket} at {endpoint} ({message}): let it list, read, write and delete there"
    )]
    Denied {
        /// The bucket.
        bucket: String,
        /// Who was asked.
        endpoint: String,
        /// S3's own words.
        message: String,
    },
    /// The clocks differ.
    #[error(
        "the clock of this machine and that of S3 at {endpoint} differ by more than S3 allows: set the clock; here it is {here}"
    )]
    Clock {
        /// Who was asked.
        endpoint: String,
        /// The time of this machine.
        here: String,
    },
    /// The bucket is elsewhere.
    #[error("the bucket {bucket} is in another region ({message}): correct --etcd-s3-region or --etcd-s3-endpoint")]
    Region {
        /// The bucket.
        bucket: String,
        /// S3's own words.
        message: String,
    },
    /// Any other answer.
    #[error("S3 at {endpoint} answers {status} ({message}): try again, or ask whoever runs it")]
    Answer {
        /// Who was asked.
        endpoint: String,
        /// HTTP's code.
        status: u16,
        /// S3's own words.
        message: String,
    },
    /// A key, the session token or the region cannot be part of a request.
    #[error(
        "a key, the session token or the region for S3 at {endpoint} holds characters that no request can: copy it again, without line ends"
    )]
    Unsendable {
        /// Who was to be asked.
        endpoint: String,
    },
    /// No answer of S3's.
    #[error("whoever answers at {endpoint} is no S3 ({why}): correct --etcd-s3-endpoint")]
    Unreadable {
        /// Who was asked.
        endpoint: String,
        /// What cannot be read.
        why: String,
    },
    /// More objects than can be snapshots.
    #[error("{location} holds more than {limit} objects: give snapshots a folder of their own by --etcd-s3-folder")]
    TooMany {
        /// What was listed.
        location: String,
        /// How many are listed at most.
        limit: usize,
    },
    /// Larger than an object, or than the disk.
    #[error("{what} has {bytes} bytes, and {room} are the most here")]
    TooLarge {
        /// The object or file.
        what: String,
        /// Its size.
        bytes: u64,
        /// How many there may be.
        room: u64,
    },
    /// A file of ours.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl S3Error {
    /// Whether the same may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Answer { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
