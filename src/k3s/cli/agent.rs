//! `k3s agent`.

use std::{ffi::OsString, process::ExitCode};

use k3s_components::Need;
use k3s_config::Error as ConfigError;
use tracing::warn;

use super::{
    Failure,
    environment::{environment, refused},
    failure::{OS_ERROR, UNAVAILABLE},
    runtime, signals,
    upstream::libexec,
};
use crate::version;

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let (config, warnings) = match k3s_config::parse_agent(args, &environment()?) {
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
    let libexec = libexec()?;
    let components = libexec.require(&[Need::Node]).map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;
    let package = k3s_agent::Package { components, images: libexec.packaged_images() };

    runtime::run(async {
        let shutdown = signals::shutdown_on_signal()
            .map_err(|error| Failure::new(OS_ERROR, format!("signals cannot be received: {error}")))?;
        k3s_agent::run(config, package, shutdown).await.map_err(|error| Failure::from_error(error.exit_code(), &error))
    })?;
    Ok(ExitCode::SUCCESS)
}
