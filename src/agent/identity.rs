//! Who this node is, across restarts and reinstallations of its software.

use std::path::Path;

use k3s_components::Paths;
use k3s_config::{
    agent::{AgentConfig, NodeConfig},
    secret::Secret,
};
use k3s_identity::{NodeFiles, Password, Token};

use crate::Error;

/// Where a node keeps what makes it itself, beside the configuration that its user wrote.
pub const ETC: &str = "/etc/rancher";

/// The node's whole name: as configured, with its id under `--with-node-id`. Draws id and password at the first start.
pub fn node_name(config: &NodeConfig, paths: &Paths) -> Result<String, Error> {
    Ok(of(config, paths)?.0)
}

/// The node's whole name, and the password that keeps others from taking it.
pub(crate) fn of(config: &NodeConfig, paths: &Paths) -> Result<(String, Password), Error> {
    let files = NodeFiles::new(Path::new(ETC));
    let password = files.password(&paths.agent().join("node-password.txt"))?;
    let name = if config.with_node_id { format!("{}-{}", config.name, files.id()?) } else { config.name.clone() };
    Ok((name, password))
}

/// What an agent was given to join with.
pub(crate) fn token(config: &AgentConfig) -> Result<Option<Token>, Error> {
    let parse = |given: &Secret| given.expose().parse();
    let parsed = config.token.as_ref().map(parse).transpose();
    Ok(parsed.map_err(|source| k3s_identity::Error::Given { option: "--token", source })?)
}
