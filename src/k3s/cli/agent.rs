//! `k3s agent`.

use std::{ffi::OsString, process::ExitCode};

use k3s_components::Need;
use tracing::warn;

use super::{
    Failure,
    environment::{asked, environment},
    failure::UNAVAILABLE,
    reload, runtime, signals, unused_files,
    upstream::libexec,
};
use crate::version;

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let Some((config, warnings)) = asked(k3s_config::parse_agent(args.clone(), &environment()?))? else {
        return Ok(ExitCode::SUCCESS);
    };
    runtime::log(config.debug);
    for warning in &warnings {
        warn!("{warning}");
    }
    unused_files::of_agent(&config).iter().for_each(|sentence| warn!("{sentence}"));
    let package = libexec()?
        .package(&[Need::Node], version::KUBERNETES)
        .map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;

    runtime::run(async {
        let shutdown = signals::shutdown_on_signal()?;
        let source = reload::source(move || Ok(k3s_config::parse_agent(args.clone(), &environment()?)))?;
        k3s_agent::run(config, source, package, shutdown)
            .await
            .map_err(|error| Failure::from_error(error.exit_code(), &error))
    })?;
    Ok(ExitCode::SUCCESS)
}
