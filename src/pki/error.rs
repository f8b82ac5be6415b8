//! What can go wrong with keys and certificates, each with its remedy.

use std::path::PathBuf;

use time::OffsetDateTime;

use crate::{certificate::Unreadable, files::FileError};

/// Why keys, certificates or kubeconfigs cannot be had. No error leaves a file overwritten that is not ours to replace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read, written, linked or removed.
    #[error(transparent)]
    File(#[from] FileError),

    /// Something else lies where an authority's certificate belongs.
    #[error(
        "{} is not a certificate authority in PEM form: {why}; put the right file there, or move it and its .key away \
         if the cluster should get a new authority", path.display()
    )]
    NotAnAuthority {
        /// The authority's certificate file.
        path: PathBuf,
        /// What is wrong with it.
        why: Unreadable,
    },

    /// Something else lies where a private key belongs.
    #[error(
        "{} is not an unencrypted private key in PEM form (RSA, ECDSA or Ed25519): put the right file there, or move \
         it away if a new key should be made", path.display()
    )]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },

    /// The key of an authority is gone.
    #[error(
        "{} is there but its key {} is not: restore the key, or move the certificate away if the cluster should get \
         a new authority", certificate.display(), key.display()
    )]
    KeyMissing {
        /// The authority's certificate file.
        certificate: PathBuf,
        /// The missing file.
        key: PathBuf,
    },

    /// An authority's certificate and key do not belong together.
    #[error("{} does not belong to the key {}: put the matching file of the two in place", certificate.display(), key.display())]
    KeyMismatch {
        /// The authority's certificate file.
        certificate: PathBuf,
        /// Its key file.
        key: PathBuf,
    },

    /// An authority is past its end.
    #[error(
        "{} expired on {}, the clock says {}: set the clock if it is wrong, else put a new authority in place",
        path.display(), not_after.date(), now.date()
    )]
    AuthorityExpired {
        /// The authority's certificate file.
        path: PathBuf,
        /// When it ended.
        not_after: OffsetDateTime,
        /// The time it was held against.
        now: OffsetDateTime,
    },

    /// The clock is behind the day an authority was made.
    #[error("{} is valid from {not_before} on, the clock says {now}: set the clock", path.display())]
    AuthorityNotYetValid {
        /// The authority's certificate file.
        path: PathBuf,
        /// When it begins.
        not_before: OffsetDateTime,
        /// The time it was held against.
        now: OffsetDateTime,
    },

    /// A new authority would be made by a clock that was never set.
    #[error("the clock says {now}, it was never set: certificates made now would end before today; set the clock")]
    ClockUnset {
        /// What the clock says.
        now: OffsetDateTime,
    },

    /// The front's stored certificate is the user's own, and cannot be used.
    #[error("{} holds a certificate marked static that cannot be used ({why}): replace it, or remove the file", path.display())]
    StaticCertificate {
        /// `dynamic-cert.json`.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// The group that should own the user's kubeconfig.
    #[error("there is no group {0:?}: create it, or name another with --write-kubeconfig-group")]
    UnknownGroup(String),

    /// The cryptographic library failed: it has no randomness, or the machine is broken.
    #[error("cannot {0}: the cryptographic library failed")]
    Crypto(&'static str),
}
