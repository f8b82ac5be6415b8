//! Other servers of the cluster, as far as they have to reach this server's node: it holds a tunnel to each, as an agent does.

use std::{collections::BTreeSet, net::SocketAddr};

use k3s_agent::Reachable;
use k3s_balancer::Address;
use k3s_controllers::follow_api_endpoints;
use k3s_supervise::Supervisor;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Holds the tunnels by which the others reach this server's `node` until `shutdown`; `own` is where this server is published.
pub(crate) async fn hold_tunnels(
    client: Client,
    own: SocketAddr,
    node: &Reachable,
    supervisor: &Supervisor,
    shutdown: CancellationToken,
) {
    let others = watch::Sender::new(BTreeSet::new());
    let follow = follow_api_endpoints(client, |servers| {
        others.send_replace(servers.into_iter().filter(|server| *server != own).map(Address::from).collect());
    });
    let hold = k3s_agent::hold_tunnels(others.subscribe(), node, supervisor);
    shutdown.run_until_cancelled(async { tokio::join!(follow, hold) }).await;
}
