//! One connection, and the requests that kube-apiserver makes.

use anyhow::{Context, Result, ensure};
use etcd_client::{
    CompactionOptions, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, Txn, TxnOp, TxnResponse, WatchOptions,
    WatchStream,
};

/// How many objects kube-apiserver asks for at once.
pub(crate) const PAGE: i64 = 500;

/// An object that is in the store.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) key: String,
    /// Of its last change.
    pub(crate) revision: i64,
}

/// A connection of its own. Every change is guarded by the revision that the object had, and fails if that is another by now.
pub(crate) struct Client(etcd_client::Client);

impl Client {
    /// Connects, and waits for the answer to a first request.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let mut client = Self(etcd_client::Client::connect([endpoint], Some(ConnectOptions::new())).await?);
        client.revision().await?;
        Ok(client)
    }

    /// The newest revision, learnt as kube-apiserver learns it: by a key that is not there.
    pub(crate) async fn revision(&mut self) -> Result<i64> {
        let answer = self.0.get("/registry/none", None).await?;
        Ok(answer.header().context("an answer has no header")?.revision())
    }

    pub(crate) async fn create(&mut self, key: String, value: Vec<u8>) -> Result<Object> {
        let txn = Txn::new().when([Compare::mod_revision(key.as_str(), CompareOp::Equal, 0)]).and_then([TxnOp::put(
            key.as_str(),
            value,
            None,
        )]);
        let revision = self.changed(&key, txn).await?;
        Ok(Object { key, revision })
    }

    pub(crate) async fn update(&mut self, object: &mut Object, value: Vec<u8>) -> Result<()> {
        let key = object.key.as_str();
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, object.revision)])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, None)]);
        object.revision = self.changed(key, txn).await?;
        Ok(())
    }

    pub(crate) async fn delete(&mut self, Object { key, revision }: Object) -> Result<()> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, revision)])
            .and_then([TxnOp::delete(key.as_str(), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        self.changed(&key, txn).await.map(drop)
    }

    async fn changed(&mut self, key: &str, txn: Txn) -> Result<i64> {
        let answer: TxnResponse = self.0.txn(txn).await?;
        ensure!(answer.succeeded(), "{key} is not as it was left");
        Ok(answer.header().context("an answer has no header")?.revision())
    }

    pub(crate) async fn get(&mut self, key: &str) -> Result<()> {
        let answer = self.0.get(key, None).await?;
        ensure!(answer.kvs().len() == 1, "{key} is not there");
        Ok(())
    }

    /// A page of the objects below `prefix` from `start` on, which lies below it, as of `revision`; 0 is the newest.
    pub(crate) async fn list(&mut self, start: &str, prefix: &str, revision: i64) -> Result<Vec<KeyValue>> {
        let options = GetOptions::new().with_range(end_of(prefix)).with_limit(PAGE).with_revision(revision);
        Ok(self.0.get(start, Some(options)).await?.take_kvs())
    }

    pub(crate) async fn count(&mut self, prefix: &str) -> Result<i64> {
        let options = GetOptions::new().with_prefix().with_count_only();
        Ok(self.0.get(prefix, Some(options)).await?.count())
    }

    /// Watches everything below `prefix` after `revision`. Returns when the store has taken the watch.
    pub(crate) async fn watch(&mut self, prefix: &str, revision: i64) -> Result<WatchStream> {
        let options =
            WatchOptions::new().with_prefix().with_prev_key().with_progress_notify().with_start_revision(revision + 1);
        let mut stream = self.0.watch(prefix, Some(options)).await?;
        let first = stream.message().await?.context("a watch ended at once")?;
        ensure!(first.created() && !first.canceled(), "a watch was refused: {}", first.cancel_reason());
        Ok(stream)
    }

    /// Forgets everything before `revision`. Returns when it is gone from the disk.
    pub(crate) async fn compact(&mut self, revision: i64) -> Result<()> {
        self.0.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
        Ok(())
    }
}

/// The first key after those that begin with `prefix`, which ends with a slash.
fn end_of(prefix: &str) -> String {
    prefix.strip_suffix('/').map(|folder| format!("{folder}0")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key() {
        assert_eq!(end_of("/registry/leases/"), "/registry/leases0");
        assert!("/registry/leases/~" < "/registry/leases0");
    }
}
