//! What keeps a process from taking its place.

use std::{io, path::PathBuf};

use k3s_config::Role;
use k3s_supervise::{GraphError, notify::NotifyError};
use sysexits::ExitCode;

/// A process that cannot take its place on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another one runs on the same directory.
    #[error("another k3s {role} runs on {}: stop it, or choose another --data-dir", path.display())]
    Locked {
        /// What it is.
        role: Role,
        /// The data directory.
        path: PathBuf,
    },
    /// A file or directory could not be made.
    #[error("{} cannot be used ({source}): the directory has to be writable and have free space", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The service manager's socket.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// The thread that forks children.
    #[error("no thread can be started for the components ({0}): the system is out of processes")]
    Thread(io::Error),
    /// A program has the name of the clock.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Error {
    /// The process's exit code, after sysexits.h.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Locked { .. } => ExitCode::TempFail,
            Self::File { .. } => ExitCode::CantCreat,
            Self::Notify(_) | Self::Thread(_) => ExitCode::OsErr,
            Self::Graph(_) => ExitCode::Software,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
