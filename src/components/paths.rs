//! Where state lies: k3s' own layout, so that its directories are taken over as they are.

use std::path::{Path, PathBuf};

/// The directories of one server or agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    data: PathBuf,
    run: PathBuf,
}

impl Paths {
    /// Where a node has sockets and whatever else a boot may lose.
    pub const RUN: &str = "/run/k3s";

    /// State below `data` (`--data-dir`), sockets and other things that a boot may lose below `run` ([`Self::RUN`]).
    pub fn new(data: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), run: run.into() }
    }

    /// The data directory itself.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The run directory itself.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// `<data>/server`.
    pub fn server(&self) -> PathBuf {
        self.data.join("server")
    }

    /// `<data>/server/tls/<name>`.
    pub fn tls(&self, name: &str) -> PathBuf {
        self.server().join("tls").join(name)
    }

    /// `<data>/server/cred/<name>`.
    pub fn cred(&self, name: &str) -> PathBuf {
        self.server().join("cred").join(name)
    }

    /// `<data>/agent`.
    pub fn agent(&self) -> PathBuf {
        self.data.join("agent")
    }

    /// `<data>/agent/etc/<name>`.
    pub fn agent_etc(&self, name: &str) -> PathBuf {
        self.agent().join("etc").join(name)
    }

    /// Kubelet's, which this process asks the API with as the node.
    pub fn kubelet_kubeconfig(&self) -> PathBuf {
        self.agent().join("kubelet.kubeconfig")
    }

    /// kube-proxy's.
    pub fn kube_proxy_kubeconfig(&self) -> PathBuf {
        self.agent().join("kubeproxy.kubeconfig")
    }

    /// What this process asks the API with for what the node itself may not.
    pub fn k3s_controller_kubeconfig(&self) -> PathBuf {
        self.agent().join("k3scontroller.kubeconfig")
    }

    /// How kube-apiserver encrypts Secrets, `<data>/server/cred/encryption-config.json` as in k3s; there once that is set up.
    pub fn encryption_config(&self) -> PathBuf {
        self.cred("encryption-config.json")
    }

    /// The database of a server that keeps its cluster alone, `<data>/server/db/state.db` as in k3s.
    pub fn sqlite(&self) -> PathBuf {
        self.server().join("db/state.db")
    }

    /// The datastore's socket, `<data>/server/kine.sock` as in k3s.
    pub fn datastore_socket(&self) -> PathBuf {
        self.server().join("kine.sock")
    }

    /// `<run>/containerd/containerd.sock`.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd/containerd.sock")
    }

    /// `<run>/status.sock`, where `k3s status` asks.
    pub fn status_socket(&self) -> PathBuf {
        self.run.join("status.sock")
    }

    /// `<run>/snapshot.sock`, where `k3s snapshot save` asks.
    pub fn snapshot_socket(&self) -> PathBuf {
        self.run.join("snapshot.sock")
    }

    /// `<data>/agent/images`, where users drop archives to import.
    pub fn images(&self) -> PathBuf {
        self.agent().join("images")
    }
}
