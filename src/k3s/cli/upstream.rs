//! Becoming an upstream program that comes with us.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use k3s_components::Libexec;

use super::failure::{Failure, OS_ERROR, UNAVAILABLE};

/// Where this machine has the upstream programs.
pub(crate) fn libexec() -> Result<Libexec, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(OS_ERROR, format!("the path of this program cannot be read: {error}")))?;
    Ok(Libexec::new(std::env::var_os("K3S_LIBEXEC").as_deref(), &own, std::env::var_os("PATH").as_deref()))
}

/// The file of the program called `name`.
pub(crate) fn find(name: &str) -> Result<PathBuf, Failure> {
    libexec()?.find(name).ok_or_else(|| {
        Failure::new(
            UNAVAILABLE,
            format!("{name} is missing: install the whole package or point K3S_LIBEXEC at its libexec/k3s folder"),
        )
    })
}

/// Whether the user set a variable; an empty one sets nothing.
pub(crate) fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Replaces this process by `program`, with each of `defaults` set in its environment unless the user set it.
pub(crate) fn become_program(
    program: PathBuf,
    name: &str,
    args: Vec<OsString>,
    defaults: &[(&str, &OsStr)],
) -> Result<ExitCode, Failure> {
    let mut command = Command::new(&program);
    command.arg0(name).args(args);
    for (variable, value) in defaults {
        if !is_set(variable) {
            command.env(variable, value);
        }
    }
    let error = command.exec();
    Err(Failure::new(OS_ERROR, format!("{} cannot be run: {error}", program.display())))
}
