//! Where a node's kubelet listens, as far as servers reach it through the node's tunnel.

use kube::ResourceExt as _;

use crate::{ClusterView, Derived, egress::kubelet_port};

impl ClusterView {
    /// The port of the kubelet of the node called `node`: users give it another one (`--kubelet-arg=port=…`), and servers ask for the one
    /// that the Node object names. `None` while there is none.
    pub fn kubelet_port(&self, node: &str) -> Derived<Option<u16>> {
        let node = node.to_owned();
        self.nodes().derive(
            move |object| kubelet_port(object).filter(|_| object.name_any() == node),
            |ports| ports.values().copied().next(),
        )
    }
}
