//! `k3s status`: the supervisor's own word on every component.

use std::{path::PathBuf, process::ExitCode};

use super::{
    Failure,
    failure::UNAVAILABLE,
    output::{Format, print_json, show},
    runtime,
};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// text or json
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Name every problem, where warnings name the first ones
    #[arg(short, long, conflicts_with = "output")]
    all: bool,
    /// Show what the start was spent on
    #[arg(long, conflicts_with_all = ["output", "all"])]
    timeline: bool,
    /// Where k3s answers
    #[arg(long, value_name = "PATH", default_value = "/run/k3s/status.sock")]
    socket: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let status = runtime::run(async {
        k3s_supervise::status::fetch(&options.socket).await.map_err(|error| Failure::from_error(UNAVAILABLE, &error))
    })?;
    match options.output {
        Format::Text if options.timeline => show(status.into_timeline())?,
        Format::Text if options.all => show(status.with_problems())?,
        Format::Text => show(status)?,
        Format::Json => print_json("the status", &status)?,
    }
    Ok(ExitCode::SUCCESS)
}
