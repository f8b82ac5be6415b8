//! How the trial of a version ended: kept on the data partition, so that the version that runs afterwards can tell.

use std::fmt;

use k3s_files::{FileError, failed};
use serde::{Deserialize, Serialize};

use crate::{Machine, Version};

/// Beside the machine's identity.
const FILE: &str = "last-trial.json";

/// The end of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was tried.
    pub version: String,
    /// Why it is not good; none if it is.
    pub failure: Option<String>,
}

impl Outcome {
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
        let bytes = k3s_files::read(&machine.own(FILE))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The data partition is full or not writable.
    pub fn write(&self, machine: &Machine) -> Result<(), FileError> {
        let path = machine.own(FILE);
        let json = serde_json::to_vec(self).map_err(|error| failed("write", &path)(error.into()))?;
        k3s_files::write(&path, &json, 0o644).map(|_| ())
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
