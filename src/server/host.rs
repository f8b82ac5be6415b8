//! Who this server is on the network.

use std::net::IpAddr;

use k3s_config::server::ServerConfig;
use nix::unistd::gethostname;

use crate::Error;

/// Who this server is on the network.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The node's whole name.
    pub(crate) name: String,
    /// Its addresses, the primary first; never empty.
    pub(crate) ips: Vec<IpAddr>,
    /// The machine's own name, whatever the node is called.
    pub(crate) hostname: String,
}

impl Host {
    /// Settles name and addresses, and puts the name into the node's configuration. Draws the node's id at the first start.
    pub(crate) async fn of(config: &mut ServerConfig) -> Result<Self, Error> {
        let ips = k3s_agent::own_addresses(&config.ips).await?;
        let name = Self::name(config)?;
        if let Some(node) = &mut config.node {
            node.name.clone_from(&name);
        }
        let hostname = gethostname().map_err(|errno| Error::file("/proc/sys/kernel/hostname")(errno.into()))?;
        Ok(Self { name, ips, hostname: hostname.to_string_lossy().into_owned() })
    }

    /// The node's whole name, or the host's where there is no node.
    pub(crate) fn name(config: &ServerConfig) -> Result<String, Error> {
        match &config.node {
            Some(node) => Ok(k3s_agent::node_name(node)?),
            None => Ok(config.node_name.clone()),
        }
    }

    /// The same host after a move to `ips`. It is reached by the addresses of before too: kubelet and the API are known by them until the
    /// next start.
    pub(crate) fn moved_to(&self, ips: &[IpAddr]) -> Self {
        let before = self.ips.iter().filter(|ip| !ips.contains(ip));
        Self { ips: ips.iter().chain(before).copied().collect(), ..self.clone() }
    }

    /// The address that the API is advertised at: `published_at`, or else the host's own.
    pub(crate) fn advertised(&self, published_at: Option<IpAddr>) -> IpAddr {
        published_at.unwrap_or(self.ips[0])
    }
}
