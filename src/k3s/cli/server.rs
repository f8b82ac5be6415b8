//! `k3s server`.

use std::{ffi::OsString, process::ExitCode};

use k3s_components::Need;
use k3s_config::Error as ConfigError;
use tracing::warn;

use super::{
    Failure,
    environment::{environment, refused},
    failure::{OS_ERROR, UNAVAILABLE},
    runtime, signals, snapshot,
    upstream::libexec,
};
use crate::version;

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let (config, warnings) = match k3s_config::parse_server(args, &environment()?) {
        Ok(parsed) => parsed,
        Err(ConfigError::Help(text)) => {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        Err(ConfigError::Version) => {
            println!("{}", version::text());
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(refused(&error)),
    };
    runtime::log(config.debug);
    for warning in &warnings {
        warn!("{warning}");
    }
    if let Some(file) = &config.restore {
        return snapshot::restore(&config, file);
    }
    let mut needs = vec![Need::ControlPlane];
    needs.extend(config.node.is_some().then_some(Need::Node));
    let libexec = libexec()?;
    let components = libexec.require(&needs).map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;
    let images = libexec.packaged_images();
    let package = k3s_server::Package { components, images, version: version::KUBERNETES };

    runtime::run(async {
        let shutdown = signals::shutdown_on_signal()
            .map_err(|error| Failure::new(OS_ERROR, format!("signals cannot be received: {error}")))?;
        k3s_server::run(config, package, shutdown).await.map_err(|error| Failure::from_error(error.exit_code(), &error))
    })?;
    Ok(ExitCode::SUCCESS)
}
