//! What servers may reach through a node's tunnels, as the cluster's egress mode has it.

use std::net::IpAddr;

use ipnet::IpNet;
use k3s_components::Paths;
use k3s_config::server::EgressMode;
use k3s_controllers::{ClusterView, OwnPods};
use k3s_tunnel::{Reach, Rules};
use tokio::sync::watch;
use tracing::info;

/// Kubelet's port unless the Node object tells another one.
pub const KUBELET_PORT: u16 = 10250;

/// A node that servers reach through tunnels.
#[derive(Debug)]
pub struct Reachable {
    /// Its name.
    pub name: String,
    /// Where its kubelet listens.
    pub kubelet: IpAddr,
    /// Its own addresses.
    pub ips: Vec<IpAddr>,
    /// The cluster's pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// What servers reach beside its kubelet.
    pub egress: EgressMode,
    /// Tells where its kubelet and pods are.
    pub view: ClusterView,
    /// Where its certificates lie.
    pub paths: Paths,
}

/// What holds before anything is known of the cluster, and in the modes in which nothing else is reached.
pub(crate) fn kubelet_alone(address: IpAddr) -> watch::Sender<Rules> {
    watch::Sender::new(Rules { kubelet: (address, KUBELET_PORT).into(), reach: Reach::Kubelet })
}

impl Reachable {
    /// Keeps `rules` right for as long as it is polled: they follow kubelet's port, and in mode `pod` the node's pods.
    pub(crate) async fn keep(&self, rules: &watch::Sender<Rules>) {
        let set = |reach| rules.send_modify(|rules| rules.reach = reach);
        match self.egress {
            EgressMode::Agent | EgressMode::Disabled => set(Reach::Kubelet),
            EgressMode::Cluster => {
                let own = self.ips.iter().copied().map(IpNet::from);
                set(Reach::Networks(self.pod_cidrs.iter().copied().chain(own).collect()));
            }
            // Told by the pods themselves.
            EgressMode::Pod => {}
        }
        let kubelet = async {
            let mut ports = self.view.kubelet_port(&self.name);
            loop {
                // A node that goes leaves its kubelet where it was.
                if let Some(port) = ports.changed().await {
                    lead_to_kubelet(rules, port);
                }
            }
        };
        let pods = async {
            if self.egress == EgressMode::Pod {
                let mut pods = self.view.pods_of(&self.name);
                loop {
                    let OwnPods { addresses, host_ports } = pods.changed().await;
                    set(Reach::Pods { pods: addresses, node: self.ips.iter().copied().collect(), host_ports });
                }
            }
        };
        tokio::join!(kubelet, pods);
    }
}

fn lead_to_kubelet(rules: &watch::Sender<Rules>, port: u16) {
    let changed = rules.send_if_modified(|rules| {
        let changed = rules.kubelet.port() != port;
        rules.kubelet.set_port(port);
        changed
    });
    if changed {
        info!(port, "Servers reach this node's kubelet on another port.");
    }
}

#[cfg(test)]
mod tests {
    use k3s_controllers::{NodeScope, Scope};

    use super::*;
    use crate::{
        api,
        testing::{KUBELET_PORT, TestServer},
    };

    const OWN: NodeScope = NodeScope { nodes: Scope::Own, pods: Scope::Own };

    #[tokio::test]
    async fn kubelet_is_reached_on_the_port_that_its_node_tells() {
        let server = TestServer::start().await;
        server.direct_applicant().join().await.unwrap();
        let paths = Paths::new(server.disk.path(), Paths::RUN);
        let view = api::view_of_node("edge-1", &paths, OWN, &watch::channel(()).1).await.unwrap();
        view.begin();
        let node = Reachable {
            name: "edge-1".into(),
            kubelet: [192, 0, 2, 7].into(),
            ips: Vec::new(),
            pod_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            egress: EgressMode::Cluster,
            view,
            paths,
        };
        let rules = kubelet_alone(node.kubelet);
        let mut seen = rules.subscribe();
        assert_eq!(seen.borrow().kubelet, (node.kubelet, super::KUBELET_PORT).into());
        let told = seen.wait_for(|rules| rules.kubelet.port() == KUBELET_PORT);
        tokio::select! {
            () = node.keep(&rules) => unreachable!("it is kept for as long as it is polled"),
            told = told => drop(told.unwrap()),
        }
        let reach = Reach::Networks(node.pod_cidrs.clone());
        assert_eq!(*rules.borrow(), Rules { kubelet: (node.kubelet, KUBELET_PORT).into(), reach });
    }
}
