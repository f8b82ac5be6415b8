//! `k3s agent`: its configuration is read and checked as a whole; joining comes with a later version.

use std::{ffi::OsString, process::ExitCode};

use k3s_config::Error as ConfigError;

use super::{
    Failure,
    environment::{environment, refused},
    failure::UNAVAILABLE,
};
use crate::version;

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    match k3s_config::parse_agent(args, &environment()?) {
        Ok((config, _)) => Err(Failure::new(
            UNAVAILABLE,
            format!(
                "joining {} is not served by this version: run k3s server for a cluster of one node",
                config.server
            ),
        )),
        Err(ConfigError::Help(text)) => {
            print!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        Err(ConfigError::Version) => {
            println!("{}", version::text());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(refused(&error)),
    }
}
