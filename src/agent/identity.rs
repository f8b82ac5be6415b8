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

/// The node's whole name: as configured, with its id under `--with-node-id`. Draws the id at the first start.
///
/// # Errors
/// The id cannot be drawn, read or stored.
pub fn node_name(config: &NodeConfig) -> Result<String, Error> {
    match config.with_node_id {
        true => Ok(format!("{}-{}", config.name, NodeFiles::new(Path::new(ETC)).id()?)),
        false => Ok(config.name.clone()),
    }
}

/// What keeps others from taking the node's name. Draws it at the first start.
pub(crate) fn password(paths: &Paths) -> Result<Password, Error> {
    Ok(NodeFiles::new(Path::new(ETC)).password(&paths.agent().join("node-password.txt"))?)
}

/// What an agent was given to join with.
pub(crate) fn token(config: &AgentConfig) -> Result<Option<Token>, Error> {
    let parse = |given: &Secret| given.expose().parse();
    let parsed = config.token.as_ref().map(parse).transpose();
    Ok(parsed.map_err(|source| k3s_identity::Error::Given { option: "--token", source })?)
}
