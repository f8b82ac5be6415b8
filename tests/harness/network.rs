//! The wire between nodes: a switch that is also their way out, with one address beyond it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};

use crate::{
    machine::{Blueprint, Machine},
    run::Run,
};

/// Where the default route of each node leads.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Nodes on one Ethernet segment, 10.99.0.0/24, with a default route that leads nowhere but to [`Network::OUTSIDE`].
///
/// All of it is inside namespaces: nothing of it is to be seen on the real machine, and nothing reaches another network.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Dropped in this order: the disks go when nothing uses them.
    router: Machine,
    run: Run,
    addresses: AtomicU8,
}

impl Network {
    /// An address outside of every cluster. `http://198.51.100.1/` answers with the address that the request came from.
    pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    /// Makes a network without nodes.
    ///
    /// # Panics
    ///
    /// Says in one sentence why it cannot be made, e.g. that the caller is not root.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it makes things on the machine")]
    pub fn new() -> Self {
        match Self::make() {
            Ok(network) => network,
            Err(error) => panic!("{error:#}."),
        }
    }

    fn make() -> Result<Self> {
        let run = Run::start()?;
        let router = Machine::boot(&Blueprint {
            host_name: "router".into(),
            cgroup: run.cgroup_of("router"),
            memory: None,
            disk: run.disk_of("router"),
            shares: Vec::new(),
            mirror: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80))),
        })?;
        router.setup(&format!(
            "ip link set lo up
             ip address add {}/32 dev lo
             ip link add switch type bridge
             ip address add {ROUTER}/24 dev switch
             ip link set switch up
             nft 'table bridge nodes {{ chain blocked {{ type filter hook forward priority 0; }}; }}'",
            Self::OUTSIDE
        ))?;
        Ok(Self { inner: Arc::new(Inner { router, run, addresses: AtomicU8::new(10) }) })
    }

    pub(crate) fn run(&self) -> &Run {
        &self.inner.run
    }

    /// An address for one more node.
    pub(crate) fn lease(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, self.inner.addresses.fetch_add(1, Ordering::Relaxed))
    }

    /// Plugs a machine in, under its host name, and configures its `eth0`.
    pub(crate) fn plug(&self, machine: &Machine, name: &str, address: Ipv4Addr) -> Result<()> {
        // The kernel takes a crashed node's port away only when the last socket of its network has gone.
        self.inner.router.setup(&format!("ip link delete {name} 2>/dev/null || true"))?;
        let router = self.inner.router.init();
        let node = machine.init();
        // Both ends are made where they belong, so the real machine never sees them.
        let argv = format!("link add {name} netns {router} type veth peer name eth0 netns {node}");
        let output = Command::new("ip").args(argv.split(' ')).output().context("cannot run ip (package iproute2)")?;
        if !output.status.success() {
            bail!("`ip {argv}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        self.inner.router.setup(&format!("ip link set {name} master switch up"))?;
        machine.setup(&format!(
            "ip link set lo up
             ip address add {address}/24 dev eth0
             ip link set eth0 up
             ip route add default via {ROUTER}
             echo 'nameserver {ROUTER}' > /etc/resolv.conf
             printf '127.0.0.1 localhost\\n{address} {name}\\n' > /etc/hosts"
        ))
    }

    /// Drops everything between two nodes, also what is under way, until [`Network::unblock`].
    pub(crate) fn block(&self, one: &str, other: &str) -> Result<()> {
        self.inner.router.setup(&format!(
            "nft add rule bridge nodes blocked iifname {one} oifname {other} drop
             nft add rule bridge nodes blocked iifname {other} oifname {one} drop"
        ))
    }

    /// Lets all nodes reach each other again.
    #[track_caller]
    pub fn unblock(&self) {
        if let Err(error) = self.inner.router.setup("nft flush chain bridge nodes blocked") {
            panic!("{error:#}.");
        }
    }
}
