//! Other servers of the cluster, as far as they have to reach this server's node: it holds a tunnel to each that runs kube-apiserver, as an
//! agent does.

use std::{collections::BTreeSet, net::SocketAddr};

use k3s_agent::Reachable;
use k3s_balancer::{Address, Balancer};
use k3s_controllers::{Context, Controller};
use k3s_supervise::{Supervisor, TaskError};
use tokio::sync::watch;

/// Holds the tunnels by which the others reach this server's node.
pub(crate) struct PeerTunnels {
    /// Where this server is published.
    pub(crate) own: SocketAddr,
    /// What leads to them, on a server that runs no kube-apiserver: it knows where they are, and is told how they do.
    pub(crate) balancer: Option<Balancer>,
    pub(crate) node: Reachable,
    pub(crate) supervisor: Supervisor,
}

impl Controller for PeerTunnels {
    const NAME: &'static str = "peer-tunnels";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        if let Some(balancer) = &self.balancer {
            k3s_agent::run_tunnels(balancer.servers(), Some(balancer.clone()), &self.node, &self.supervisor).await;
            return Ok(());
        }
        let others = watch::Sender::new(BTreeSet::new());
        let follow = async {
            let mut servers = context.view.api_endpoints();
            loop {
                let servers = servers.changed().await;
                // None is no answer: this server is one.
                if !servers.is_empty() {
                    others.send_replace(
                        servers.into_iter().filter(|server| *server != self.own).map(Address::from).collect(),
                    );
                }
            }
        };
        let hold = k3s_agent::run_tunnels(others.subscribe(), None, &self.node, &self.supervisor);
        tokio::join!(follow, hold);
        Ok(())
    }
}
