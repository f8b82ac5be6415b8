//! `k3s os status`: the slots.

use std::process::ExitCode;

use k3s_os::Machine;

use super::{
    super::{
        Failure,
        output::{Format, print_json, show},
    },
    failure,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// text or json
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let status = Machine::at("/").status().map_err(|error| failure(&error))?;
    match options.output {
        Format::Text => show(status)?,
        Format::Json => print_json("the status", &status)?,
    }
    Ok(ExitCode::SUCCESS)
}
