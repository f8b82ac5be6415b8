//! What the host and the cluster told about this node, as far as its components need to know.

use std::{net::IpAddr, path::PathBuf};

use k3s_config::{agent::NodeConfig, network::ClusterNetwork, resources::Profile};
use k3s_network::ProxyMode;

/// A node's facts, settled before its components start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the user asked for.
    pub config: NodeConfig,
    /// The address plan it joins.
    pub network: ClusterNetwork,
    /// Its own addresses, the primary first; never empty: `--node-ip`, or those of the default route's device (`src/agent/network.rs`).
    pub ips: Vec<IpAddr>,
    /// The resolv.conf that pods inherit: `--resolv-conf`, or what `src/agent/resolv_conf.rs` finds; `src/agent/node.rs` settles it.
    pub resolv_conf: PathBuf,
    /// How Services reach pods.
    pub proxy_mode: ProxyMode,
    /// Who makes cgroups for pods.
    pub cgroup_driver: CgroupDriver,
    /// Whether this process may lower `oom_score_adj`; without it runc must not try to.
    pub may_lower_oom_score: bool,
    /// Whether the kernel has unified cgroups.
    pub cgroup_v2: bool,
    /// A cgroup for shims which no stop or restart empties.
    pub shim_cgroup: Option<String>,
    /// Whether a controller initialises the node (`--disable-cloud-controller` not given).
    pub cloud_provider_external: bool,
    /// How much memory programs are set up for.
    pub profile: Profile,
    /// klog verbosity.
    pub verbosity: u8,
}

/// Who makes cgroups for pods: kubelet and containerd have to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Plain directories.
    Cgroupfs,
    /// Through systemd.
    Systemd,
}

impl CgroupDriver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}
