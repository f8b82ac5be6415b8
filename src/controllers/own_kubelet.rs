//! Where a node's kubelet listens, as far as servers reach it through the node's tunnel.

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, runtime::watcher};

use crate::egress::{Known, kubelet_port};

/// Tells the port of the kubelet of the node called `node`, whenever that changes, for as long as it is polled: users give it another one
/// (`--kubelet-arg=port=…`), and servers ask for the one that the Node object names. Kubelet's own credentials suffice.
pub async fn follow_own_kubelet(client: Client, node: &str, mut changed: impl FnMut(u16)) {
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    // A node that goes leaves its kubelet where it was.
    let tell = |ports: &Known<u16>| ports.items.values().copied().for_each(&mut changed);
    Known::watch(Api::<Node>::all(client), own, "this node", kubelet_port, tell).await;
}
