//! The two sides: `k3s server`, and a script that starts the same programs with a store.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use cluster_tests::{Job, Network, Node, PATIENCE};

use super::figures::Side;
use super::store::Store;
use crate::process;

const SCRIPT: &str = include_str!("script.sh");

/// What a server leaves behind for the script: everything but the datastore, containers and images.
const TEMPLATE: &str = "tar -C / --exclude=containerd/io.* --exclude=agent/images -cf /root/template.tar \
    var/lib/rancher/k3s/server/tls var/lib/rancher/k3s/server/cred var/lib/rancher/k3s/agent";

/// What the script needs ready-made.
pub(super) struct Script {
    /// Variables for the components, as `NAME=VALUE`.
    env: Vec<String>,
    /// An archive of certificates, kubeconfigs and configuration files at their places.
    template: Vec<u8>,
}

/// One side, on an empty disk each time it boots.
pub(super) enum Contender<'a> {
    K3s { flags: String },
    Script(&'a Script, Store),
}

impl Script {
    /// Lets a server make certificates and configuration files, once.
    pub(super) fn prepare(env: Vec<String>) -> Result<Self> {
        let server = Node::boot(&Network::new(), NAME);
        let job = server.start_k3s("--disable=coredns");
        server.wait_until_ready();
        stop(&server, &job);
        server.succeed(TEMPLATE);
        let template = fs::read(server.path("/root/template.tar")).context("Cannot read what the server made")?;
        Ok(Self { env, template })
    }

    /// Everything is where the script wants it, and the images are in containerd.
    fn install(&self, store: Store, node: &Node) -> Result<()> {
        for (path, content) in [("/root/template.tar", self.template.as_slice()), ("/opt/script.sh", SCRIPT.as_bytes())]
        {
            fs::write(node.path(path), content).with_context(|| format!("Cannot write {path} of the node"))?;
        }
        store.install(node, "/var/lib/store")?;
        node.succeed("tar -C / -xf /root/template.tar && rm /root/template.tar");
        let containerd = node.background(
            "export PATH=/opt/k3s/libexec/k3s:$PATH; exec containerd -c /var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        );
        let ctr = "/opt/k3s/libexec/k3s/ctr -a /run/k3s/containerd/containerd.sock -n k8s.io";
        node.wait_until_succeeds(&format!("{ctr} version"), PATIENCE);
        node.succeed(&format!("for image in /opt/k3s/share/k3s/images/*.tar; do {ctr} images import $image; done"));
        stop(node, &containerd);
        Ok(())
    }
}

impl Contender<'_> {
    pub(super) fn side(&self) -> Side {
        match self {
            Self::K3s { .. } => Side::K3s,
            Self::Script(..) => Side::Script,
        }
    }

    /// Where its API listens on loopback.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::K3s { .. } => 6443,
            Self::Script(..) => 6444,
        }
    }

    /// A node on which it has never run. It is alone on its network, so it has the same name and address each time.
    pub(super) fn boot(&self) -> Result<Node> {
        let node = Node::boot(&Network::new(), NAME);
        if let Self::Script(script, store) = self {
            script.install(*store, &node)?;
        }
        // What was just written is no concern of the start.
        process::succeed(&mut Command::new("sync"))?;
        Ok(node)
    }

    pub(super) fn start(&self, node: &Node) -> Job {
        match self {
            Self::K3s { flags } => node.start_k3s(flags),
            Self::Script(Script { env, .. }, _) => {
                let (env, name, address) = (env.join(" "), node.name(), node.address());
                node.background(&format!("exec env NODE={name} ADDRESS={address} {env} sh /opt/script.sh"))
            }
        }
    }
}

/// The node's name, which certificates hold.
const NAME: &str = "server";

/// Asks a job to end and waits until it has.
pub(super) fn stop(node: &Node, job: &Job) {
    node.succeed(&format!("kill -TERM {0} && tail --pid={0} -f /dev/null", job.pid));
}
