//! Knowing where the servers are: first from the one that let this node in, then from the endpoints of the `kubernetes` Service.

use std::{collections::BTreeSet, time::Duration};

use k3s_balancer::{Address, Balancer};
use k3s_controllers::ClusterView;
use tokio::{sync::watch, time::sleep};
use tracing::debug;

use crate::{error::chain, server_api::ServerApi};

/// Between questions to a server that does not know yet, as in k3s.
const PAUSE: Duration = Duration::from_secs(5);

/// Keeps the balancer's list of servers right for as long as it is polled, from the first join on.
pub(crate) async fn follow(balancer: &Balancer, api: watch::Receiver<Option<ServerApi>>, view: &ClusterView) {
    tokio::join!(ask(balancer, api), follow_endpoints(balancer, view));
}

/// Asks until a server knows where servers are; begun anew with each certificate that this node gets.
async fn ask(balancer: &Balancer, mut api: watch::Receiver<Option<ServerApi>>) {
    while let Ok(Some(server)) = api.wait_for(Option::is_some).await.map(|api| api.clone()) {
        tokio::select! {
            () = ask_server(balancer, &server) => return,
            changed = api.changed() => if changed.is_err() { return },
        }
    }
}

async fn ask_server(balancer: &Balancer, server: &ServerApi) {
    loop {
        match server.servers().await {
            Ok(servers) if servers.is_empty() => debug!("The server does not know yet where servers are."),
            Ok(servers) => return balancer.set_servers(servers.into_iter().collect()),
            Err(error) => debug!(error = chain(&error), "The servers could not be asked for."),
        }
        sleep(PAUSE).await;
    }
}

async fn follow_endpoints(balancer: &Balancer, view: &ClusterView) {
    let mut endpoints = view.api_endpoints();
    loop {
        // None is no answer: somebody answered.
        let servers: BTreeSet<Address> = endpoints.changed().await.into_iter().map(Address::from).collect();
        if !servers.is_empty() {
            balancer.set_servers(servers);
        }
    }
}
