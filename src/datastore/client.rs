//! The store from inside this process: what `k3s` itself keeps there, without gRPC.
//!
//! The operations are those of kine's client, which k3s uses for the same purpose, so that an etcd endpoint can serve
//! them too: each write names the revision that it replaces.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::RequestError;
use crate::key::{Key, KeyRange};
use crate::range::Range;
use crate::revision::{LeaseId, Revision};
use crate::store::Store;
use crate::txn::{Delete, Guard, Op, Put, Relation, Target, Txn};

/// Reads and writes single keys of an open store; see [`Datastore::client`](crate::Datastore::client).
#[derive(Clone)]
pub struct Client {
    store: Arc<Store>,
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
        Self { store }
    }

    /// One key, if it is there.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the store cannot be read.
    pub async fn get(&self, key: &str) -> Result<Option<Stored>, ClientError> {
        let found = self.range(KeyRange::One(Key::copy_from_slice(key.as_bytes()))).await?;
        Ok(found.into_iter().next())
    }

    /// All keys that begin with `prefix`, in their order.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the store cannot be read.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Stored>, ClientError> {
        self.range(KeyRange::prefixed(prefix.as_bytes())).await
    }

    /// Writes a key that is not there yet.
    ///
    /// # Errors
    /// [`ClientError::Exists`] if it is there; [`ClientError::Refused`].
    pub async fn create(&self, key: &str, value: impl Into<Bytes>) -> Result<Revision, ClientError> {
        let put = put(key, value.into());
        self.guarded(key, Target::Create(Revision::ZERO), put).await?.ok_or_else(|| ClientError::Exists(key.to_owned()))
    }

    /// Replaces the value that was written at `modified`.
    ///
    /// # Errors
    /// [`ClientError::Changed`] if the key has another one by now; [`ClientError::Refused`].
    pub async fn update(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        modified: Revision,
    ) -> Result<Revision, ClientError> {
        let put = put(key, value.into());
        self.guarded(key, Target::Mod(modified), put).await?.ok_or_else(|| ClientError::Changed(key.to_owned()))
    }

    /// Deletes the key that was written at `modified`.
    ///
    /// # Errors
    /// [`ClientError::Changed`] if it is another one by now; [`ClientError::Refused`].
    pub async fn delete(&self, key: &str, modified: Revision) -> Result<(), ClientError> {
        let keys = KeyRange::One(Key::copy_from_slice(key.as_bytes()));
        let delete = Op::Delete(Delete { keys, return_previous: false });
        let deleted = self.guarded(key, Target::Mod(modified), delete).await?;
        deleted.map(drop).ok_or_else(|| ClientError::Changed(key.to_owned()))
    }

    async fn range(&self, keys: KeyRange) -> Result<Vec<Stored>, ClientError> {
        let page = self.store.range(&Range::newest(keys)).await?;
        let stored =
            page.kvs.into_iter().map(|kv| Stored { key: kv.key, value: kv.value, modified: kv.entry.modified });
        Ok(stored.collect())
    }

    /// The revision of the change; `None` if the guard did not hold.
    async fn guarded(&self, key: &str, target: Target, op: Op) -> Result<Option<Revision>, ClientError> {
        let keys = KeyRange::One(Key::copy_from_slice(key.as_bytes()));
        let guards = vec![Guard { keys, target, relation: Relation::Equal }];
        let reply = self.store.txn(Txn { guards, success: vec![op], failure: Vec::new() }).await?;
        Ok(reply.succeeded.then_some(reply.revision))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("path", &self.store.path).finish()
    }
}

fn put(key: &str, value: Bytes) -> Op {
    let key = Key::copy_from_slice(key.as_bytes());
    Op::Put(Put { key, value: Some(value), lease: Some(LeaseId::NONE), return_previous: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datastore::{Datastore, Options};

    #[tokio::test]
    async fn a_write_names_what_it_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let client = datastore.client();
        assert_eq!(client.get("/a/1").await, Ok(None));
        let first = client.create("/a/1", "one").await.unwrap();
        assert_eq!(client.create("/a/1", "two").await, Err(ClientError::Exists("/a/1".into())));
        let second = client.update("/a/1", "two", first).await.unwrap();
        assert_eq!(client.update("/a/1", "three", first).await, Err(ClientError::Changed("/a/1".into())));
        client.create("/b", "other").await.unwrap();

        let stored = Stored { key: "/a/1".into(), value: "two".into(), modified: second };
        assert_eq!(client.get("/a/1").await, Ok(Some(stored.clone())));
        assert_eq!(client.list("/a").await, Ok(vec![stored]));
        assert_eq!(client.delete("/a/1", first).await, Err(ClientError::Changed("/a/1".into())));
        client.delete("/a/1", second).await.unwrap();
        assert_eq!(client.list("/a").await, Ok(vec![]));
        datastore.close().await.unwrap();
        assert!(matches!(client.create("/c", "late").await, Err(ClientError::Refused(_))));
    }
}
