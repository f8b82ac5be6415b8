//! `k3s status`: the supervisor's own word on every component.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;

use super::{
    Failure,
    failure::{SOFTWARE, UNAVAILABLE},
    runtime,
};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// text or json
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Where k3s answers
    #[arg(long, value_name = "PATH", default_value = "/run/k3s/status.sock")]
    socket: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let status = runtime::run(async {
        k3s_supervise::status::fetch(&options.socket).await.map_err(|error| Failure::from_error(UNAVAILABLE, &error))
    })?;
    match options.output {
        Format::Text => print!("{status}"),
        Format::Json => {
            let json = serde_json::to_string_pretty(&status)
                .map_err(|error| Failure::new(SOFTWARE, format!("the status cannot be written: {error}")))?;
            println!("{json}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
