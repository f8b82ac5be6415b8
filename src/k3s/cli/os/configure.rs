//! `k3s os configure`: what a machine is to be, by the file on its ESP.

use std::process::ExitCode;

use k3s_os::Machine;
use nix::unistd::sethostname;

use super::{
    super::{
        Failure,
        environment::environment,
        failure::{IO_ERROR, OS_ERROR},
        output::line,
    },
    failure,
};

pub(super) fn run() -> Result<ExitCode, Failure> {
    let machine = Machine::at("/");
    let configured = machine.configure(&environment()?).map_err(|error| failure(&error))?;
    // systemd read it before it was written.
    let hostname = machine.hostname().map_err(|error| Failure::from_error(IO_ERROR, &error))?;
    sethostname(&hostname)
        .map_err(|error| Failure::new(OS_ERROR, format!("this host cannot be called {hostname}: {error}")))?;
    line(configured.sentence())?;
    Ok(ExitCode::SUCCESS)
}
