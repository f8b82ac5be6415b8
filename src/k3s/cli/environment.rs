//! What this process was started with, as the plain values that parsing wants.

use std::path::PathBuf;

use k3s_config::{Environment, Error};

use super::failure::{Failure, OS_ERROR};

/// The process's own variables, host name and directory.
pub(super) fn environment() -> Result<Environment, Failure> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(OS_ERROR, format!("{what} cannot be read: {error}"));
    let hostname = nix::unistd::gethostname().map_err(|error| failed("the host's name", &error))?;
    Ok(Environment {
        variables: std::env::vars_os().collect(),
        hostname: hostname.to_string_lossy().into_owned(),
        directory: std::env::current_dir().map_err(|error| failed("the working directory", &error))?,
        config_file: PathBuf::from(Environment::CONFIG_FILE),
    })
}

/// A configuration that does not parse, as a failure with its own exit code.
pub(super) fn refused(error: &Error) -> Failure {
    Failure::from_error(error.exit_code(), error)
}
