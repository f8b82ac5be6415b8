//! `k3s os recover`: what a server finds that was written by another version.

use std::process::ExitCode;

use k3s_config::{Role, datastore::OnDisk, server::ServerConfig};
use k3s_os::{Data, Machine, News, WayBack, Writer};
use k3s_server::snapshots;
use tracing::warn;

use super::{
    super::{Failure, environment::environment, failure::SOFTWARE, globals::Globals, runtime},
    failure,
};
use crate::version;

pub(super) fn run(globals: Globals) -> Result<ExitCode, Failure> {
    runtime::log(globals.debug);
    let machine = Machine::at("/");
    let config = match machine.role() {
        Some(Role::Server) => {
            // The server will say what is wrong, and write nothing.
            let Ok((config, _)) = k3s_config::parse_server([], &environment()?) else { return Ok(ExitCode::SUCCESS) };
            Some(config).filter(|config| matches!(config.datastore.on_disk(), Some(OnDisk::Database(_))))
        }
        _ => None,
    };
    if let Some(way) = machine.way_back().map_err(|error| failure(&error))? {
        let message = runtime::run(async { Ok(go_back(&machine, &way, config.as_ref()).await) })?
            .map_err(|error| failure(&error))?;
        warn!("{message}");
        machine.add_news(News { reason: "SystemReturned".into(), message }).map_err(|error| failure(&error))?;
        machine.end_way_back(&way).map_err(|error| failure(&error))?;
    }
    if config.is_some() {
        machine.set_writer(&writer(&machine)?).map_err(|error| failure(&error))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings the data to where it is to be, and tells what has happened. Data that cannot be brought back is for the server to say something of.
async fn go_back(machine: &Machine, way: &WayBack, config: Option<&ServerConfig>) -> Result<String, k3s_os::Error> {
    let WayBack { from, why, data } = way;
    let begin = format!("{from} was given up ({why}), and {} runs again", machine.version()?);
    Ok(match (data, config) {
        (_, None) => format!("{begin}."),
        (Data::Stays, Some(_)) => format!("{begin}, with the cluster's data as it is."),
        (Data::OfBefore(None), Some(_)) => {
            format!(
                "{begin}; the cluster's data is as {from} has written it, for no snapshot was taken before the update."
            )
        }
        (Data::OfBefore(Some(snapshot)), Some(config)) => {
            match snapshots::restore(config, snapshot, version::KUBERNETES).await {
                Ok(restored) => {
                    let kept =
                        restored.kept.map(|kept| format!("; what {from} has left is kept as {}", kept.display()));
                    format!(
                        "{begin}, with the cluster's data of before the update, from {}{}.",
                        snapshot.display(),
                        kept.unwrap_or_default()
                    )
                }
                Err(error) => {
                    let why = Failure::from_error(SOFTWARE, &error);
                    format!(
                        "{begin}; the cluster's data is as {from} has written it, for the snapshot of before could not be brought back: {why}."
                    )
                }
            }
        }
    })
}

fn writer(machine: &Machine) -> Result<Writer, Failure> {
    Ok(Writer {
        version: machine.version().map_err(|error| failure(&error))?,
        kubernetes: snapshots::minor(version::KUBERNETES).unwrap_or_default(),
        format: k3s_datastore::FORMAT,
    })
}
