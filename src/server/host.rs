//! The machine: who it is on the network, and whether its disk has room.

use std::{fs::DirBuilder, net::IpAddr, os::unix::fs::DirBuilderExt};

use k3s_components::Paths;
use k3s_config::server::ServerConfig;
use nix::{sys::statvfs::statvfs, unistd::gethostname};

use crate::Error;

/// Bytes that have to be free for a start: certificates, and the datastore's reserve twice.
const NEEDED: u64 = 64 << 20;

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

/// Refuses a disk that is as good as full, before half of what a server needs has been written to it.
pub(crate) fn check_room(paths: &Paths) -> Result<(), Error> {
    check_room_for(paths, NEEDED)
}

/// As [`check_room`], for a start that has more to do.
pub(crate) fn check_room_for(paths: &Paths, needed: u64) -> Result<(), Error> {
    let dir = paths.server();
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::file(&dir))?;
    let disk = statvfs(&dir).map_err(|errno| Error::file(&dir)(errno.into()))?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    if free < needed {
        return Err(Error::NoRoom { path: dir, free: free >> 20, needed: needed >> 20 });
    }
    Ok(())
}
