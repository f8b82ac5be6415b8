//! What can go wrong with tokens and passwords, each with its remedy.

use std::path::PathBuf;

use k3s_files::FileError;
use k3s_pki::Unreadable;

use crate::token::TokenError;

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),

    /// The value of an option is no token.
    #[error("{option} is not usable: {source}")]
    Given {
        /// `--token`, `--agent-token` or another name for it.
        option: &'static str,
        /// What is wrong with it.
        source: TokenError,
    },

    /// A token file holds something else.
    #[error("{} does not hold a server token ({source}): restore the file, or remove it to have it written again", path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenError,
    },

    /// `--token` names another token than the server was set up with.
    #[error(
        "--token is not the token that this server was set up with: give the one in {}, or none; the cluster's data is \
         tied to it", path.display()
    )]
    OtherToken {
        /// The stored token.
        path: PathBuf,
    },

    /// There is no token that could be exchanged.
    #[error("{} has no account of the server's: start the server first", path.display())]
    NotSetUp {
        /// `cred/passwd`.
        path: PathBuf,
    },
    /// The next token is today's.
    #[error("the new token is the one in use: give another one, or none to have one drawn")]
    SameToken,
    /// `cred/passwd` cannot be understood.
    #[error("{} line {line}: {why}; correct the line or restore the file", path.display())]
    Passwd {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },

    /// The authority that tokens pin cannot be read.
    #[error("the server's certificate authority cannot be read: {0}")]
    Authority(#[from] Unreadable),

    /// There is no randomness.
    #[error("cannot draw a random password: the cryptographic library failed")]
    Random,
}
