//! What `k3s` itself keeps in the store, beside kube-apiserver: single keys, in this process's store or in one elsewhere.
//!
//! The operations are those of kine's client, which k3s uses for the same purpose: each write names the revision that it replaces.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, RequestError};
use crate::key::{Key, KeyRange};
use crate::range::Range;
use crate::remote::{Remote, RemoteOptions};
use crate::revision::{LeaseId, Revision};
use crate::store::Store;
use crate::txn::{self, Delete, Op, Put, Relation, Target, Txn};

/// Reads and writes single keys of a store; see [`Datastore::client`](crate::Datastore::client) and [`Client::remote`].
#[derive(Clone, Debug)]
pub struct Client {
    backing: Backing,
}

#[derive(Clone, Debug)]
enum Backing {
    Embedded(Embedded),
    Remote(Arc<Remote>),
}

/// The store of this process.
#[derive(Clone)]
struct Embedded(Arc<Store>);

/// What has to be so for a change to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The key is not there.
    Absent,
    /// It was last changed at this revision.
    At(Revision),
}

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Bytes),
    Delete,
}

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision of its last change, which the next one has to name.
    pub modified: Revision,
}

/// Why an operation was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// A create found the key there.
    #[error("the datastore has {0} already")]
    Exists(String),
    /// An update or delete found the key changed or gone.
    #[error("{0} was changed in the datastore meanwhile")]
    Changed(String),
    /// Nobody answers who has the store elsewhere. A change may have happened nevertheless.
    #[error("the datastore does not answer: {0}")]
    Unreachable(String),
    /// The store refused; its text says why.
    #[error("the datastore refused: {0}")]
    Refused(String),
}

impl From<RequestError> for ClientError {
    fn from(error: RequestError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl Client {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { backing: Backing::Embedded(Embedded(store)) }
    }

    /// Asks a store elsewhere; connections are made when they are needed.
    ///
    /// # Errors
    /// [`Error::Tls`] names the file that cannot be used.
    pub fn remote(options: &RemoteOptions) -> Result<Self, Error> {
        Ok(Self { backing: Backing::Remote(Arc::new(Remote::new(options)?)) })
    }

    /// One key, if it is there.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the store cannot be read, [`ClientError::Unreachable`].
    pub async fn get(&self, key: &str) -> Result<Option<Stored>, ClientError> {
        Ok(self.get_at(key).await?.1)
    }

    /// As [`Client::get`], with the revision that the store has reached.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the store cannot be read, [`ClientError::Unreachable`].
    pub async fn get_at(&self, key: &str) -> Result<(Revision, Option<Stored>), ClientError> {
        let (revision, found) = self.range(KeyRange::One(Key::copy_from_slice(key.as_bytes()))).await?;
        Ok((revision, found.into_iter().next()))
    }

    /// All keys that begin with `prefix`, in their order.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the store cannot be read, [`ClientError::Unreachable`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<Stored>, ClientError> {
        Ok(self.range(KeyRange::prefixed(prefix.as_bytes())).await?.1)
    }

    /// Writes a key that is not there yet.
    ///
    /// # Errors
    /// [`ClientError::Exists`] if it is there; [`ClientError::Refused`], [`ClientError::Unreachable`].
    pub async fn create(&self, key: &str, value: impl Into<Bytes>) -> Result<Revision, ClientError> {
        let created = self.change(key, Guard::Absent, Change::Put(value.into())).await?;
        created.ok_or_else(|| ClientError::Exists(key.to_owned()))
    }

    /// Replaces the value that was written at `modified`.
    ///
    /// # Errors
    /// [`ClientError::Changed`] if the key has another one by now; [`ClientError::Refused`], [`ClientError::Unreachable`].
    pub async fn update(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        modified: Revision,
    ) -> Result<Revision, ClientError> {
        let updated = self.change(key, Guard::At(modified), Change::Put(value.into())).await?;
        updated.ok_or_else(|| ClientError::Changed(key.to_owned()))
    }

    /// Deletes the key that was written at `modified`.
    ///
    /// # Errors
    /// [`ClientError::Changed`] if it is another one by now; [`ClientError::Refused`], [`ClientError::Unreachable`].
    pub async fn delete(&self, key: &str, modified: Revision) -> Result<(), ClientError> {
        let deleted = self.change(key, Guard::At(modified), Change::Delete).await?;
        deleted.map(drop).ok_or_else(|| ClientError::Changed(key.to_owned()))
    }

    async fn range(&self, keys: KeyRange) -> Result<(Revision, Vec<Stored>), ClientError> {
        match &self.backing {
            Backing::Embedded(own) => own.range(keys).await,
            Backing::Remote(remote) => remote.range(keys).await,
        }
    }

    /// The revision of the change; `None` if the guard did not hold.
    async fn change(&self, key: &str, guard: Guard, change: Change) -> Result<Option<Revision>, ClientError> {
        let key = Key::copy_from_slice(key.as_bytes());
        match &self.backing {
            Backing::Embedded(own) => own.change(key, guard, change).await,
            Backing::Remote(remote) => remote.change(&key, guard, change).await,
        }
    }
}

impl Embedded {
    async fn range(&self, keys: KeyRange) -> Result<(Revision, Vec<Stored>), ClientError> {
        let page = self.0.range(&Range::newest(keys)).await?;
        let stored =
            page.kvs.into_iter().map(|kv| Stored { key: kv.key, value: kv.value, modified: kv.entry.modified });
        Ok((page.revision, stored.collect()))
    }

    async fn change(&self, key: Key, guard: Guard, change: Change) -> Result<Option<Revision>, ClientError> {
        let keys = KeyRange::One(key.clone());
        let target = match guard {
            Guard::Absent => Target::Create(Revision::ZERO),
            Guard::At(modified) => Target::Mod(modified),
        };
        let guards = vec![txn::Guard { keys: keys.clone(), target, relation: Relation::Equal }];
        let op = match change {
            Change::Put(value) => {
                Op::Put(Put { key, value: Some(value), lease: Some(LeaseId::NONE), return_previous: false })
            }
            Change::Delete => Op::Delete(Delete { keys, return_previous: false }),
        };
        let reply = self.0.txn(Txn { guards, success: vec![op], failure: Vec::new() }).await?;
        Ok(reply.succeeded.then_some(reply.revision))
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Embedded").field(&self.0.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::contract::contract_at;
    use crate::datastore::{Datastore, Options};
    use crate::remote::RemoteServer;
    use crate::tls::{ServerTls, testing::Authority};
    use crate::{Access, BoundEndpoint, Endpoint, Listener as _};

    /// What every client does, wherever its store is.
    async fn writes_name_what_they_replace(client: &Client) {
        assert_eq!(client.get("/a/1").await, Ok(None));
        let first = client.create("/a/1", "one").await.unwrap();
        assert_eq!(client.create("/a/1", "two").await, Err(ClientError::Exists("/a/1".into())));
        let second = client.update("/a/1", "two", first).await.unwrap();
        assert_eq!(client.update("/a/1", "three", first).await, Err(ClientError::Changed("/a/1".into())));
        let third = client.create("/b", "other").await.unwrap();
        assert_eq!(client.get_at("/nowhere").await, Ok((third, None)));

        let stored = Stored { key: "/a/1".into(), value: "two".into(), modified: second };
        assert_eq!(client.get("/a/1").await, Ok(Some(stored.clone())));
        assert_eq!(client.list("/a/").await, Ok(vec![stored]));
        assert_eq!(client.delete("/a/1", first).await, Err(ClientError::Changed("/a/1".into())));
        client.delete("/a/1", second).await.unwrap();
        assert_eq!(client.list("/a/").await, Ok(vec![]));
    }

    fn remote(servers: &[&str], tls: bool) -> RemoteOptions {
        let server = |text: &&str| {
            let (host, port) = text.rsplit_once(':').unwrap();
            RemoteServer::Tcp { tls, host: host.to_owned(), port: port.parse().unwrap() }
        };
        RemoteOptions { servers: servers.iter().map(server).collect(), ca_file: None, client: None }
    }

    #[tokio::test]
    async fn in_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let client = datastore.client();
        writes_name_what_they_replace(&client).await;
        datastore.close().await.unwrap();
        assert!(matches!(client.create("/c", "late").await, Err(ClientError::Refused(_))));
    }

    #[tokio::test]
    async fn in_etcd_and_elsewhere_in_one_of_ours() {
        contract_at(async |_, url| {
            let address = url.strip_prefix("http://").unwrap();
            // The first of them is not there.
            let client = Client::remote(&remote(&["127.0.0.1:1", address], false)).unwrap();
            writes_name_what_they_replace(&client).await;
        })
        .await;
    }

    #[tokio::test]
    async fn in_another_process_of_this_machine() {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let socket = directory.path().join("kine.sock");
        let bound = Endpoint::Unix(socket.clone()).bind(&Access::default()).await.unwrap();
        let servers = vec![RemoteServer::Unix(socket)];
        let client = Client::remote(&RemoteOptions { servers, ca_file: None, client: None }).unwrap();
        let shutdown = CancellationToken::new();
        let asked = async {
            writes_name_what_they_replace(&client).await;
            shutdown.cancel();
        };
        let (served, ()) = tokio::join!(bound.serve(&datastore, shutdown.clone()), asked);
        served.unwrap();
        datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn elsewhere_with_certificates_on_both_sides() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, stranger) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "stranger"));
        let server = ca.issue("server");
        let tls = ServerTls::load(&server.certificate, &server.key, Some(&ca.certificate)).unwrap();
        let datastore = Datastore::open(Options::new(folder.path().join("state.db"))).await.unwrap();
        let endpoint: Endpoint = "https://127.0.0.1:0".parse().unwrap();
        let bound = endpoint.bind(&Access { tls: Some(tls), insecure: false }).await.unwrap();
        let BoundEndpoint::Https(listener) = &bound else { panic!("bound as {bound:?}") };
        let options = remote(&[listener.url().strip_prefix("https://").unwrap()], true);
        let shutdown = CancellationToken::new();
        let clients = async {
            for (trusted, shown, expected) in [
                (&ca, Some(ca.issue("known")), None),
                (&ca, None, Some("")),
                (&stranger, Some(ca.issue("known")), Some("invalid peer certificate")),
            ] {
                let client = shown.map(|issued| (issued.certificate, issued.key));
                let options = RemoteOptions { ca_file: Some(trusted.certificate.clone()), client, ..options.clone() };
                let client = Client::remote(&options).unwrap();
                match (client.list("/").await, expected) {
                    (Ok(_), None) => writes_name_what_they_replace(&client).await,
                    (Err(ClientError::Unreachable(why)), Some(expected)) => {
                        assert!(why.contains("https://127.0.0.1:") && why.contains(expected), "{why}");
                    }
                    (other, expected) => panic!("{other:?} instead of {expected:?}"),
                }
            }
            // Certificates that were renewed in place.
            let (shown, renewed) = (stranger.issue("renewed"), ca.issue("new"));
            let client = Some((shown.certificate.clone(), shown.key.clone()));
            let options = RemoteOptions { ca_file: Some(ca.certificate.clone()), client, ..options.clone() };
            let client = Client::remote(&options).unwrap();
            assert!(matches!(client.list("/").await, Err(ClientError::Unreachable(_))));
            fs::rename(renewed.certificate, &shown.certificate).unwrap();
            let half = client.list("/").await.unwrap_err().to_string();
            assert!(half.contains("renewed-key.pem"), "the key is still the old one: {half}");
            fs::rename(renewed.key, &shown.key).unwrap();
            client.list("/").await.unwrap();
            shutdown.cancel();
        };
        tokio::join!(async { bound.serve(&datastore, shutdown.clone()).await.unwrap() }, clients);
        datastore.close().await.unwrap();
        let missing = RemoteOptions { ca_file: Some("/nonexistent/ca".into()), ..options };
        assert!(Client::remote(&missing).unwrap_err().to_string().contains("cannot use /nonexistent/ca for TLS"));
    }

    #[tokio::test]
    async fn nowhere() {
        let client = Client::remote(&remote(&["127.0.0.1:1", "127.0.0.1:2"], false)).unwrap();
        let error = client.get("/a").await.unwrap_err().to_string();
        let expected = "the datastore does not answer: http://127.0.0.1:1: Connection refused";
        assert!(error.starts_with(expected) && error.contains("http://127.0.0.1:2"), "{error}");
    }
}
