//! How the trial of a version ended: kept on the data partition, so that the version that runs afterwards can tell.

use std::fmt;

use k3s_files::FileError;
use serde::{Deserialize, Serialize};

use crate::{Error, Machine, Version};

/// The end of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was tried.
    pub version: String,
    /// Why it is not good; none if it is.
    pub failure: Option<String>,
}

impl Outcome {
    /// Beside the machine's identity.
    pub(crate) const FILE: &str = "last-trial.json";

    /// A version that has shown that it is good.
    pub fn good(version: &Version) -> Self {
        Self { version: version.to_string(), failure: None }
    }

    /// A version that has not, with what did not hold.
    pub fn failed(version: &Version, reason: impl Into<String>) -> Self {
        Self { version: version.to_string(), failure: Some(reason.into()) }
    }

    /// The last one of this machine. A file that is not whole says nothing.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(machine: &Machine) -> Result<Option<Self>, FileError> {
        machine.kept(Self::FILE)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The data partition is full or not writable.
    pub fn write(&self, machine: &Machine) -> Result<(), Error> {
        machine.keep(Self::FILE, self)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            None => write!(f, "{} is good", self.version),
            Some(reason) => write!(f, "{} was given up: {reason}", self.version),
        }
    }
}
