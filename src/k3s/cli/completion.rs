//! `k3s completion SHELL`.

use std::{io, process::ExitCode};

use clap_complete::Shell;

use super::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// bash, zsh, fish or elvish
    shell: Shell,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    clap_complete::generate(options.shell, &mut super::command(), "k3s", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}
