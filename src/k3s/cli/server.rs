//! `k3s server`.

use std::{ffi::OsString, process::ExitCode};

use k3s_components::Need;
use k3s_config::snapshots::ClusterReset;
use tracing::warn;

use super::{
    Failure,
    environment::{asked, environment},
    failure::UNAVAILABLE,
    reload, runtime, signals, snapshot, unused_files,
    upstream::libexec,
};
use crate::version;

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let Some((config, warnings)) = asked(k3s_config::parse_server(args.clone(), &environment()?))? else {
        return Ok(ExitCode::SUCCESS);
    };
    runtime::log(config.debug);
    for warning in &warnings {
        warn!("{warning}");
    }
    unused_files::of_server(&config).iter().for_each(|sentence| warn!("{sentence}"));
    if let Some(ClusterReset { snapshot }) = &config.cluster_reset {
        return snapshot::reset(&config, snapshot.as_ref());
    }
    let package = libexec()?
        .package(&Need::of_server(&config), version::KUBERNETES)
        .map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;

    runtime::run(async {
        let shutdown = signals::shutdown_on_signal()?;
        let source = reload::source(move || Ok(k3s_config::parse_server(args.clone(), &environment()?)))?;
        k3s_server::run(config, source, package, shutdown)
            .await
            .map_err(|error| Failure::from_error(error.exit_code(), &error))
    })?;
    Ok(ExitCode::SUCCESS)
}
