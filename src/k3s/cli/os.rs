//! `k3s os`: the system of an edge image.

use std::process::ExitCode;

use clap::Subcommand;
use k3s_os::{Error, Machine};
use nix::unistd::{Uid, sethostname};

use super::{
    Failure,
    environment::environment,
    failure::{CONFIGURATION, IO_ERROR, NO_PERMISSION, OS_ERROR, UNAVAILABLE},
    output::line,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Take first-boot.yaml from the ESP: this machine's name, role, network and configuration
    ///
    /// Each start of an edge machine does this before its network and its node. A file that was taken is removed from the ESP, since it holds
    /// secrets; a wrong one stays, and changes nothing. What came of it stands in status.txt beside it.
    Configure,
}

pub(super) fn run(verb: &Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Configure => configure(),
    }
}

fn configure() -> Result<ExitCode, Failure> {
    if !Uid::effective().is_root() {
        return Err(Failure::new(NO_PERMISSION, "an edge machine is configured by root: run this as root"));
    }
    let machine = Machine::at("/");
    let configured = machine.configure(&environment()?).map_err(|error| failure(&error))?;
    // systemd read it before it was written.
    let hostname = machine.hostname().map_err(|error| Failure::from_error(IO_ERROR, &error))?;
    sethostname(&hostname)
        .map_err(|error| Failure::new(OS_ERROR, format!("this host cannot be called {hostname}: {error}")))?;
    line(configured.sentence())?;
    Ok(ExitCode::SUCCESS)
}

fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::OtherSystem => UNAVAILABLE,
        Error::Wrong(_) => CONFIGURATION,
        Error::File(_) => IO_ERROR,
    };
    Failure::from_error(code, error)
}
