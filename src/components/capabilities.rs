//! What components may do of what root may. containerd and kubelet keep all: containers get theirs from them.

use k3s_supervise::capability::{Capabilities, Capability};

/// Files of any owner, and low ports: what a user may point the control plane's arguments at.
const FILES_AND_PORTS: [Capability; 4] =
    [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER, Capability::CAP_NET_BIND_SERVICE];

/// Of kube-apiserver and its control loops: nothing of the kernel.
pub(crate) fn of_control_plane() -> Capabilities {
    Capabilities::Only(FILES_AND_PORTS.to_vec())
}

/// Of kube-proxy: the packet filter, with what iptables and conntrack want of modules and limits.
pub(crate) fn of_kube_proxy() -> Capabilities {
    let kernel =
        [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_SYS_MODULE, Capability::CAP_SYS_RESOURCE];
    Capabilities::Only(FILES_AND_PORTS.into_iter().chain(kernel).collect())
}
