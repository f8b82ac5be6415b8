//! What servers may reach through a node's tunnels, as the cluster's egress mode has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use k3s_components::Paths;
use k3s_config::server::EgressMode;
use k3s_controllers::{OwnPods, follow_own_pods};
use k3s_tunnel::{Reach, Rules};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    api::{self, Renewed},
    error::chain,
};

/// Where kubelet listens.
const KUBELET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10250);

/// A node that servers reach through tunnels.
#[derive(Debug)]
pub struct Reachable {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub ips: Vec<IpAddr>,
    /// The cluster's pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// What servers reach beside its kubelet.
    pub egress: EgressMode,
    /// Where its state lies.
    pub paths: Paths,
    /// Tells of new certificates in it.
    pub renewed: Renewed,
}

/// What holds before anything is known of the cluster, and in the modes in which nothing else is reached.
pub(crate) fn kubelet_alone() -> watch::Sender<Rules> {
    watch::Sender::new(Rules { kubelet: KUBELET, reach: Reach::Kubelet })
}

impl Reachable {
    /// Keeps `rules` right for as long as it is polled: in mode `pod` they follow the node's pods.
    pub(crate) async fn keep(&self, rules: &watch::Sender<Rules>) {
        let set = |reach| drop(rules.send_replace(Rules { kubelet: KUBELET, reach }));
        match self.egress {
            EgressMode::Agent | EgressMode::Disabled => set(Reach::Kubelet),
            EgressMode::Cluster => {
                let own = self.ips.iter().copied().map(IpNet::from);
                set(Reach::Networks(self.pod_cidrs.iter().copied().chain(own).collect()));
            }
            EgressMode::Pod => {
                let kubeconfig = self.paths.agent().join("kubelet.kubeconfig");
                match api::lasting_client(&kubeconfig, self.renewed.clone()).await {
                    Ok(client) => {
                        follow_own_pods(client, &self.name, |OwnPods { addresses, host_ports }| {
                            set(Reach::Pods { pods: addresses, node: self.ips.iter().copied().collect(), host_ports });
                        })
                        .await;
                    }
                    Err(error) => warn!(error = chain(&error), "Servers cannot reach this node's pods."),
                }
            }
        }
        std::future::pending::<()>().await;
    }
}
