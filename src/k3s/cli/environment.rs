//! What this process was started with, as the plain values that parsing wants.

use std::{collections::HashMap, ffi::OsStr, path::PathBuf};

use k3s_config::{Environment, Error};
use nix::unistd::{Uid, User};

use super::{
    failure::{Failure, OS_ERROR},
    output::{line, show},
};
use crate::version;

/// The process's own variables, host name and directory.
pub(super) fn environment() -> Result<Environment, Failure> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(OS_ERROR, format!("{what} cannot be read: {error}"));
    let hostname = nix::unistd::gethostname().map_err(|error| failed("the host's name", &error))?;
    let mut variables: HashMap<_, _> = std::env::vars_os().collect();
    // A service manager may set none.
    if !variables.contains_key(OsStr::new("HOME"))
        && let Ok(Some(user)) = User::from_uid(Uid::current())
    {
        variables.insert("HOME".into(), user.dir.into());
    }
    Ok(Environment {
        variables,
        hostname: hostname.to_string_lossy().into_owned(),
        directory: std::env::current_dir().map_err(|error| failed("the working directory", &error))?,
        config_file: PathBuf::from(Environment::CONFIG_FILE),
    })
}

/// The configuration of a role and its warnings; `None` if only help or the version was asked for, which is printed.
pub(super) fn asked<T>(parsed: Result<T, Error>) -> Result<Option<T>, Failure> {
    match parsed {
        Ok(parsed) => return Ok(Some(parsed)),
        Err(Error::Help(text)) => show(text)?,
        Err(Error::Version) => line(version::text())?,
        Err(error) => return Err(refused(&error)),
    }
    Ok(None)
}

/// A configuration that does not parse, as a failure with its own exit code.
pub(super) fn refused(error: &Error) -> Failure {
    Failure::from_error(error.exit_code(), error)
}
