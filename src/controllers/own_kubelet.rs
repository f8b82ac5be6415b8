//! Where a node's kubelet listens, as far as servers reach it through the node's tunnel.

use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};

use crate::{
    backoff::{Backoff, log_broken_watch},
    egress::{Known, kubelet_port},
};

/// Tells the port of the kubelet of the node called `node`, whenever that changes, for as long as it is polled: users give it another one
/// (`--kubelet-arg=port=…`), and servers ask for the one that the Node object names. Kubelet's own credentials suffice.
pub async fn follow_own_kubelet(client: Client, node: &str, mut changed: impl FnMut(u16)) {
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut events = pin!(watcher(Api::<Node>::all(client), own).backoff(Backoff::default()));
    let mut ports = Known::new();
    while let Some(event) = events.next().await {
        match event {
            // A node that goes leaves its kubelet where it was.
            Ok(event) => {
                if ports.follow(event, kubelet_port) {
                    ports.items.values().copied().for_each(&mut changed);
                }
            }
            Err(error) => log_broken_watch("this node", &error),
        }
    }
}
