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

/// Keeps the balancer's list of servers right for as long as it is polled.
pub(crate) async fn follow(balancer: &Balancer, mut api: watch::Receiver<Option<ServerApi>>, paths: &Paths) {
    tokio::join!(ask(balancer, &mut api), watch_endpoints(balancer, paths));
}

/// Asks a server once for each certificate that this node gets, so also after it came back to its cluster.
async fn ask(balancer: &Balancer, api: &mut watch::Receiver<Option<ServerApi>>) {
    loop {
        let Ok(known) = api.wait_for(Option::is_some).await.map(|api| api.clone()) else { return };
        while let Some(known) = &known {
            match known.servers().await {
                Ok(servers) if servers.is_empty() => debug!("The server does not know yet where servers are."),
                Ok(servers) => {
                    balancer.set_servers(servers.into_iter().collect());
                    break;
                }
                Err(error) => debug!(error = chain(&error), "The servers could not be asked for."),
            }
            sleep(PAUSE).await;
        }
        if api.changed().await.is_err() {
            return;
        }
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
