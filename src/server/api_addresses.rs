//! Where kube-apiservers are, as etcd tells it: the key `k3s/apiaddresses`, by which servers that run none find them before they can ask the
//! API.
//!
//! ```text
//! a server with kube-apiserver: endpoints of `kubernetes` ──► key ──► a server without one: its load balancer (`other_api_servers.rs`)
//! ```
//! Key and value are k3s' (`pkg/etcd`): a list of `IP:PORT` in JSON, as Go's encoder writes it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use k3s_balancer::Address;
use k3s_controllers::{Context, Controller};
use k3s_datastore::{Client, ClientError};
use k3s_supervise::TaskError;
use tokio::time::timeout;
use tracing::debug;

const KEY: &str = "k3s/apiaddresses";
/// How often it is looked whether the key is still right: a reset of etcd empties it.
const LOOKED_EACH: Duration = Duration::from_secs(15);

/// Keeps the key as the API's endpoints are.
pub(crate) struct PublishedAddresses {
    pub(crate) store: Client,
}

impl Controller for PublishedAddresses {
    const NAME: &'static str = "api-addresses";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let mut endpoints = context.view.api_endpoints();
        let mut servers = endpoints.changed().await;
        loop {
            let until = Instant::now() + LOOKED_EACH;
            match publish(&self.store, &servers).await {
                Ok(()) => {
                    context.status.set("etcd tells servers without kube-apiserver where this one and the others are");
                }
                Err(error) => {
                    debug!(%error, "Where the API is served could not be written to etcd; trying again.");
                    context.status.set(format!("cannot be written to etcd: {error}"));
                }
            }
            if let Ok(changed) = timeout(until.saturating_duration_since(Instant::now()), endpoints.changed()).await {
                servers = changed;
            }
        }
    }
}

/// Has the key hold these, unless it does. None is no answer: somebody has served the API.
async fn publish(store: &Client, servers: &BTreeSet<SocketAddr>) -> Result<(), ClientError> {
    let value = value(servers);
    let written = match store.get(KEY).await? {
        _ if servers.is_empty() => return Ok(()),
        Some(stored) if stored.value == value => return Ok(()),
        Some(stored) => store.update(KEY, value, stored.modified).await,
        None => store.create(KEY, value).await,
    };
    match written {
        // Another server was faster, and sees the same; if not, the next look tells.
        Ok(_) | Err(ClientError::Exists(_) | ClientError::Changed(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where kube-apiservers are; nowhere where that was never told, or is not told in a form that can be read.
///
/// # Errors
/// The store's.
pub(crate) async fn known(store: &Client) -> Result<BTreeSet<Address>, ClientError> {
    Ok(store.get(KEY).await?.map(|stored| parse(&stored.value)).unwrap_or_default())
}

/// Forgets them, as k3s does with a cluster that begins anew: servers of before are none of it.
///
/// # Errors
/// The store's.
pub(crate) async fn forget(store: &Client) -> Result<(), ClientError> {
    match store.get(KEY).await? {
        Some(stored) => store.update(KEY, value(&BTreeSet::new()), stored.modified).await.map(drop),
        None => Ok(()),
    }
}

fn value(servers: &BTreeSet<SocketAddr>) -> String {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    format!("{}\n", serde_json::to_string(&servers).expect("it is texts"))
}

fn parse(value: &[u8]) -> BTreeSet<Address> {
    // Go writes null for none.
    let servers: Option<Vec<String>> = serde_json::from_slice(value).unwrap_or_default();
    servers.into_iter().flatten().filter_map(|server| server.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use k3s_datastore::{Datastore, Options};

    use super::*;

    fn servers(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn the_value_is_as_k3s_writes_it() {
        let value = value(&servers(&["10.0.0.2:6443", "10.0.0.1:6443", "[fd00::1]:6443"]));
        assert_eq!(value, "[\"10.0.0.1:6443\",\"10.0.0.2:6443\",\"[fd00::1]:6443\"]\n");
        let expected = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|host| Address::new(host, 6443));
        assert_eq!(parse(value.as_bytes()), expected.into());
        for nothing in ["", "null", "[]\n", "{}", "[\"nowhere\"]"] {
            assert_eq!(parse(nothing.as_bytes()), BTreeSet::new(), "{nothing}");
        }
    }

    #[tokio::test]
    async fn what_one_server_publishes_another_reads_until_a_reset() {
        let dir = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(dir.path().join("state.db"))).await.unwrap();
        let store = datastore.client();
        assert_eq!(known(&store).await.unwrap(), BTreeSet::new());
        publish(&store, &servers(&[])).await.unwrap();
        forget(&store).await.unwrap();
        assert!(store.get(KEY).await.unwrap().is_none(), "there is nothing to tell");

        publish(&store, &servers(&["10.0.0.1:6443"])).await.unwrap();
        let first = store.get(KEY).await.unwrap().unwrap();
        publish(&store, &servers(&["10.0.0.1:6443"])).await.unwrap();
        assert_eq!(store.get(KEY).await.unwrap().unwrap().modified, first.modified, "it is not written again");
        publish(&store, &servers(&["10.0.0.1:6443", "10.0.0.2:6443"])).await.unwrap();
        publish(&store, &servers(&[])).await.unwrap();
        assert_eq!(known(&store).await.unwrap().len(), 2);

        forget(&store).await.unwrap();
        assert_eq!(known(&store).await.unwrap(), BTreeSet::new());
        publish(&store, &servers(&["10.0.0.3:6443"])).await.unwrap();
        assert_eq!(known(&store).await.unwrap(), [Address::new("10.0.0.3", 6443)].into());
        datastore.close().await.unwrap();
    }
}
