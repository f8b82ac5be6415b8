//! Flags, environment and configuration files become one typed, checked value.
//!
//! [`parse_server`] and [`parse_agent`] read every source, merge them as k3s does and check everything that can be known before
//! anything is started or written. They read files and do nothing else.

pub mod addons;
pub mod agent;
pub mod args;
mod control_plane;
pub mod datastore;
pub mod embedded_etcd;
mod environment;
mod error;
mod file;
mod flags;
mod grammar;
mod location;
mod merge;
pub mod network;
mod node;
mod provenance;
pub mod reload;
pub mod resources;
pub mod s3;
pub mod secret;
pub mod server;
pub mod snapshots;
mod token;
mod values;
mod whole_file;

#[cfg(test)]
mod readers;
#[cfg(test)]
mod test_host;
#[cfg(test)]
mod wrong_configurations;

pub use control_plane::ControlPlaneConfig;
pub use environment::Environment;
pub use error::{Error, Origin, Place, UnknownKey, Warning};
pub use flags::{CatalogueEntry, Refusal, Role, catalogue, command, is_secret};
pub use grammar::is_dns_subdomain;
pub use location::{Location, locate};
pub use provenance::{MASK, Provenance, node_args};

use std::ffi::OsString;

use agent::AgentConfig;
use server::ServerConfig;
use values::Values;

/// What `k3s server` is asked to be; `args` is what follows the word `server`.
///
/// # Errors
/// What is asked for is unknown, refused or contradicts itself, or a file that it names cannot be read: one sentence that says what to do.
pub fn parse_server(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<(ServerConfig, Vec<Warning>), Error> {
    let (config, mut warnings) = parse(Role::Server, args, environment, ServerConfig::from_values)?;
    warnings.extend(config.node_port_in_use());
    Ok((config, warnings))
}

/// What `k3s agent` is asked to be; `args` is what follows the word `agent`.
///
/// # Errors
/// As [`parse_server`].
pub fn parse_agent(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<(AgentConfig, Vec<Warning>), Error> {
    parse(Role::Agent, args, environment, AgentConfig::from_values)
}

/// The first warning that a check refuses: a key in a file that nobody reads.
///
/// # Errors
/// That key.
pub fn check(warnings: &[Warning]) -> Result<(), UnknownKey> {
    warnings.iter().try_for_each(|warning| match warning {
        Warning::UnknownKey(unknown) => Err(unknown.clone()),
        Warning::Deprecated { .. } | Warning::NodePortInUse { .. } | Warning::ConfigNotRead { .. } => Ok(()),
    })
}

fn parse<T>(
    role: Role,
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    read: impl FnOnce(&Values, &Environment) -> Result<T, Error>,
) -> Result<(T, Vec<Warning>), Error> {
    let args: Vec<_> = args.into_iter().collect();
    let (values, warnings) = merge::collect(role, &args, environment)?;
    Ok((read(&values, environment)?, warnings))
}
