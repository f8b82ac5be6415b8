//! What the node itself was asked to be: the part that `k3s server` and `k3s agent` share.

use std::{net::IpAddr, path::PathBuf};

use crate::args::ComponentArgs;

/// A node's configuration.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The node's name: lower case, with the node id appended under `--with-node-id`.
    pub name: String,
    /// Its own addresses, one per family, the primary first (`--node-ip`); empty means: found at start from the default route.
    pub ips: Vec<IpAddr>,
    /// Addresses the outside reaches it by (`--node-external-ip`).
    pub external_ips: Vec<IpAddr>,
    /// Names for the InternalDNS addresses (`--node-internal-dns`).
    pub internal_dns: Vec<String>,
    /// Names for the ExternalDNS addresses (`--node-external-dns`).
    pub external_dns: Vec<String>,
    /// Labels set at registration (`--node-label`), `key=value`, in the given order.
    pub labels: Vec<(String, String)>,
    /// Taints set at registration (`--node-taint`).
    pub taints: Vec<Taint>,
    /// Where pods' resolv.conf comes from (`--resolv-conf`); chosen at start if `None`.
    pub resolv_conf: Option<PathBuf>,
    /// containerd's snapshotter (`--snapshotter`).
    pub snapshotter: Snapshotter,
    /// The sandbox image (`--pause-image`); ours if `None`.
    pub pause_image: Option<String>,
    /// The runtime of pods that name none (`--default-runtime`).
    pub default_runtime: Option<String>,
    /// The interface whose address the overlay uses (`--flannel-iface`).
    pub overlay_interface: Option<String>,
    /// A CNI configuration list to install instead of ours (`--flannel-cni-conf`).
    pub cni_conf: Option<PathBuf>,
    /// kubelet fails rather than change kernel settings (`--protect-kernel-defaults`).
    pub protect_kernel_defaults: bool,
    /// Devices of pods that run as non-root belong to them (`--nonroot-devices`).
    pub nonroot_devices: bool,
    /// Mirrors and credentials (`--private-registry`).
    pub registries: PathBuf,
    /// Users' arguments for kubelet (`--kubelet-arg`).
    pub kubelet_args: ComponentArgs,
    /// Users' arguments for kube-proxy (`--kube-proxy-arg`).
    pub kube_proxy_args: ComponentArgs,
}

/// A taint as `key=value:Effect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// A qualified name.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// What it does to pods that do not tolerate it.
    pub effect: TaintEffect,
}

/// The effects Kubernetes knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaintEffect {
    /// `NoSchedule`
    NoSchedule,
    /// `PreferNoSchedule`
    PreferNoSchedule,
    /// `NoExecute`
    NoExecute,
}

/// containerd's snapshotters that need nothing beside containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// The default.
    Overlayfs,
    /// Plain copies, for file systems without overlay support.
    Native,
    /// On a btrfs state directory.
    Btrfs,
    /// On a zfs state directory.
    Zfs,
}
