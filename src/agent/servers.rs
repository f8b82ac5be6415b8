//! Knowing where the servers are: first from the one that let this node in, then from the endpoints of the `kubernetes` Service.

use std::{collections::BTreeSet, time::Duration};

use k3s_balancer::{Address, Balancer};
use k3s_components::Paths;
use k3s_controllers::follow_api_endpoints;
use tokio::{sync::watch, time::sleep};
use tracing::{debug, warn};

use crate::{api, error::chain, server_api::ServerApi};

/// Between questions to a server that does not know yet, as in k3s.
const PAUSE: Duration = Duration::from_secs(5);

/// Keeps the balancer's list of servers right for as long as it is polled, from the first join on.
pub(crate) async fn follow(balancer: &Balancer, mut api: watch::Receiver<Option<ServerApi>>, paths: &Paths) {
    // Begun anew with each certificate that this node gets.
    while let Ok(Some(server)) = api.wait_for(Option::is_some).await.map(|api| api.clone()) {
        tokio::select! {
            ((), ()) = async { tokio::join!(ask(balancer, &server), watch_endpoints(balancer, paths)) } => return,
            changed = api.changed() => if changed.is_err() { return },
        }
    }
}

/// Asks until the server knows where servers are.
async fn ask(balancer: &Balancer, server: &ServerApi) {
    loop {
        match server.servers().await {
            Ok(servers) if servers.is_empty() => debug!("The server does not know yet where servers are."),
            Ok(servers) => return balancer.set_servers(servers.into_iter().collect()),
            Err(error) => debug!(error = chain(&error), "The servers could not be asked for."),
        }
        sleep(PAUSE).await;
    }
}

async fn watch_endpoints(balancer: &Balancer, paths: &Paths) {
    let kubeconfig = paths.agent().join("k3scontroller.kubeconfig");
    match api::client(&kubeconfig).await {
        Ok(client) => {
            follow_api_endpoints(client, |endpoints| {
                let servers: BTreeSet<Address> = endpoints.into_iter().map(Address::from).collect();
                balancer.set_servers(servers);
            })
            .await;
        }
        Err(error) => warn!(error = chain(&error), "The servers' addresses cannot be followed."),
    }
}
