//! Who this node is, across restarts and reinstallations of its software.

use std::path::Path;

use k3s_components::Paths;
use k3s_config::agent::NodeConfig;
use k3s_identity::NodeFiles;

use crate::Error;

/// Where a node keeps what makes it itself, beside the configuration that its user wrote.
pub const ETC: &str = "/etc/rancher";

/// The node's whole name: as configured, with its id under `--with-node-id`. Draws id and password at the first start.
pub fn node_name(config: &NodeConfig, paths: &Paths) -> Result<String, Error> {
    let files = NodeFiles::new(Path::new(ETC));
    files.password(&paths.agent().join("node-password.txt"))?;
    Ok(if config.with_node_id { format!("{}-{}", config.name, files.id()?) } else { config.name.clone() })
}
