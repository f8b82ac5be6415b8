//! Other servers of the cluster, as far as they have to reach this server's node: it holds a tunnel to each, as an agent does.

use std::{collections::BTreeSet, net::SocketAddr};

use k3s_agent::Reachable;
use k3s_balancer::Address;
use k3s_components::Paths;
use k3s_config::server::ServerConfig;
use k3s_controllers::follow_api_endpoints;
use k3s_supervise::Supervisor;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bootstrap::Host;

/// Holds the tunnels until `shutdown`; `own` is where this server is published.
pub(crate) async fn hold_tunnels(
    client: Client,
    own: SocketAddr,
    config: &ServerConfig,
    paths: &Paths,
    host: &Host,
    supervisor: &Supervisor,
    shutdown: CancellationToken,
) {
    if config.node.is_none() {
        return;
    }
    let node = Reachable {
        name: host.name.clone(),
        ips: host.ips.clone(),
        pod_cidrs: config.network.cluster_cidrs.clone(),
        egress: config.egress_mode,
        paths: paths.clone(),
    };
    let others = watch::Sender::new(BTreeSet::new());
    let follow = follow_api_endpoints(client, |servers| {
        others.send_replace(servers.into_iter().filter(|server| *server != own).map(Address::from).collect());
    });
    let hold = k3s_agent::hold_tunnels(others.subscribe(), &node, supervisor);
    shutdown.run_until_cancelled(async { tokio::join!(follow, hold) }).await;
}
