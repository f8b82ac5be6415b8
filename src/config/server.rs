//! What `k3s server` was asked to be, after every source was merged and checked.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{agent::NodeConfig, args::ComponentArgs, network::ClusterNetwork, secret::Secret};

/// A server's whole configuration.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Root of all state (`--data-dir`); server state lies in `server/` below it, agent state in `agent/`.
    pub data_dir: PathBuf,
    /// Where the front listens (`--bind-address`).
    pub bind_address: IpAddr,
    /// The front's port (`--https-listen-port`); kube-apiserver itself listens on loopback, one above.
    pub https_listen_port: u16,
    /// The address kube-apiserver publishes for itself (`--advertise-address`); the node's address if `None`.
    pub advertise_address: Option<IpAddr>,
    /// The port it publishes (`--advertise-port`).
    pub advertise_port: u16,
    /// Further names and addresses on serving certificates (`--tls-san`).
    pub tls_sans: Vec<String>,
    /// The address plan.
    pub network: ClusterNetwork,
    /// Where cluster state is kept (`--datastore-endpoint`).
    pub datastore: Datastore,
    /// The password part of the server token, where one was given (`--token`, `--token-file`).
    pub token: Option<Secret>,
    /// The same for agents (`--agent-token`, `--agent-token-file`).
    pub agent_token: Option<Secret>,
    /// The administrator's kubeconfig.
    pub kubeconfig: KubeconfigOutput,
    /// Packaged add-ons left out (`--disable`).
    pub disabled_addons: BTreeSet<Addon>,
    /// Control-plane parts left out (`--disable-scheduler` and its like).
    pub disabled: DisabledParts,
    /// Users' arguments for the control plane (`--kube-apiserver-arg` and its like).
    pub args: ControlPlaneArgs,
    /// Host of every packaged image, replacing the one in its name (`--system-default-registry`).
    pub system_default_registry: Option<String>,
    /// The node this server also is; `None` with `--disable-agent`.
    pub node: Option<NodeConfig>,
    /// The node's name even where there is no node: the server's own name in certificates and leases.
    pub node_name: String,
    /// `--debug` or `-v`: klog verbosity for children, 0 is their default.
    pub verbosity: u8,
}

impl ServerConfig {
    /// The port kube-apiserver listens on, on loopback: the one above the front's, as in k3s.
    pub fn apiserver_port(&self) -> u16 {
        self.https_listen_port + 1
    }

    /// `<data-dir>/server`.
    pub fn server_dir(&self) -> PathBuf {
        self.data_dir.join("server")
    }
}

/// Which store holds the cluster's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datastore {
    /// The embedded one: `<data-dir>/server/db/state.db`.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
}

impl Datastore {
    /// The default below a data directory, where k3s keeps it too.
    pub fn embedded(data_dir: &Path) -> Self {
        Self::Sqlite { path: data_dir.join("server/db/state.db") }
    }
}

/// Where the administrator's kubeconfig goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeconfigOutput {
    /// The file (`--write-kubeconfig`), `/etc/rancher/k3s/k3s.yaml` by default.
    pub path: PathBuf,
    /// Its permission bits (`--write-kubeconfig-mode`), 0600 by default.
    pub mode: u32,
    /// Its group, by name or number (`--write-kubeconfig-group`).
    pub group: Option<String>,
}

/// Add-ons that k3s packages and `--disable` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addon {
    /// Cluster DNS.
    Coredns,
    /// The LoadBalancer implementation.
    Servicelb,
    /// The ingress controller.
    Traefik,
    /// The local-path provisioner.
    LocalStorage,
    /// The metrics API.
    MetricsServer,
    /// RuntimeClasses.
    Runtimes,
}

/// Parts of a server that can be switched off one by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DisabledParts {
    /// `--disable-scheduler`
    pub scheduler: bool,
    /// `--disable-cloud-controller`
    pub cloud_controller: bool,
    /// `--disable-kube-proxy`
    pub kube_proxy: bool,
    /// `--disable-network-policy`
    pub network_policy: bool,
    /// `--disable-helm-controller`
    pub helm_controller: bool,
    /// `--disable-controller-manager`
    pub controller_manager: bool,
}

/// Users' arguments, one set a component, merged over our defaults as k3s does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlPlaneArgs {
    /// `--kube-apiserver-arg`
    pub kube_apiserver: ComponentArgs,
    /// `--kube-controller-manager-arg`
    pub kube_controller_manager: ComponentArgs,
    /// `--kube-scheduler-arg`
    pub kube_scheduler: ComponentArgs,
}
