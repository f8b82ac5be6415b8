//! What every server of a cluster has in common: its authorities and their keys, the service-account keys, the accounts.
//! It lies in the datastore, sealed by the server token, so that a server that knows the token can be made from the
//! datastore alone.
//!
//! ```text
//! files below server/ ──► BootstrapData ──► JSON ──► seal ──► /bootstrap/<token's hash>
//!         ▲                                                            │
//!         └──────── reconcile ◄─────────────── open ◄─────────────────┘
//! ```
//! Names, form, sealing and rules are k3s' (`pkg/bootstrap`, `pkg/cluster`): either program reads what the other wrote.

mod authorities;
mod files;
mod init_lock;
mod reconcile;
mod seal;
mod store;

use std::path::PathBuf;

use k3s_datastore::ClientError;
use k3s_files::FileError;

pub(crate) use authorities::{NotReplaced, from_folder, with_authorities};
pub(crate) use files::{
    ENCRYPTION_FILES, differs, encryption, from_disk, set_accounts, set_aside, set_encryption, write_encryption,
};
pub(crate) use init_lock::acquire_init_lock;
pub(crate) use reconcile::{Precedence, reconcile};
pub(crate) use seal::{PREFIX, token_hash};
pub(crate) use store::{Found, find, keep_only, load, save, save_beside, stored_or};

/// Why the datastore's bootstrap data and this server do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// It was sealed by another token.
    #[error(
        "bootstrap data already found and encrypted with different token: give the token that the cluster was set up with as --token; \
         the first digits of its SHA-256 are {}", sealed_by.join(" or ")
    )]
    OtherToken {
        /// The hashes in the keys that are there.
        sealed_by: Vec<String>,
    },
    /// It is there, and nothing tells the token.
    #[error(
        "the datastore belongs to a cluster that exists, and its token is not known here: give it as --token{}",
        if sealed_by.is_empty() { String::new() } else { format!("; the first digits of its SHA-256 are {}", sealed_by.join(" or ")) }
    )]
    NoToken {
        /// The hashes in the keys that are there.
        sealed_by: Vec<String>,
    },
    /// The token fits the key, but not what is in it.
    #[error(
        "the bootstrap data in the datastore's key {key} is damaged ({why}): restore a snapshot with `k3s snapshot restore`"
    )]
    Damaged {
        /// The datastore's key.
        key: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Two servers made authorities for one cluster, and the other was faster.
    #[error(
        "another server has set the cluster up meanwhile: remove the folders tls and cred of this server and start it again"
    )]
    SetUpElsewhere,
    /// Files were changed by hand since they were stored.
    #[error(
        "{} newer than datastore and could cause a cluster outage: remove the files to have them written again from the datastore",
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NewerOnDisk {
        /// The files.
        paths: Vec<PathBuf>,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The datastore did not take or give it.
    #[error("the bootstrap data cannot be kept: {0}")]
    Datastore(#[from] ClientError),
    /// The token was exchanged, and the last step of it failed.
    #[error("the new token is in force, but what the old one opens is still in the datastore ({0}): rotate once more")]
    OldTokenOpens(ClientError),
    /// There is no randomness.
    #[error("the bootstrap data cannot be sealed: the cryptographic library failed")]
    Crypto,
}
