//! `k3s completion SHELL`.

use std::process::ExitCode;

use clap_complete::Shell;

use super::{Failure, output::show};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// bash, zsh, fish or elvish
    shell: Shell,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut super::command(), "k3s", &mut script);
    show(String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
