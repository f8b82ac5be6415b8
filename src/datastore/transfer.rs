//! Everything that a store holds, written into an etcd: how one server's cluster moves to the store of several.
//!
//! Keys are written in the order of their last changes, each with a revision of its own, so that whoever compares revisions finds the
//! same order. Leases keep their numbers and what is left of their time. Earlier values and tombstones are not written: nobody can go on
//! from a revision of another store.

use std::collections::HashSet;

use crate::client::ClientError;
use crate::datastore::Datastore;
use crate::error::RequestError;
use crate::etcd::messages::{LeaseGrantRequest, LeaseGrantResponse, PutRequest, PutResponse};
use crate::key::{Key, KeyRange};
use crate::log::kine;
use crate::members::EtcdCluster;
use crate::range::{Range, SortOrder, SortTarget};
use crate::remote::Connected;
use crate::revision::{LeaseId, Revision};
use crate::store::Store;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// How many keys.
    pub keys: usize,
    /// The newest revision of the store that they come from. The etcd counts from its own.
    pub revision: Revision,
}

/// Why not everything was written.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// It could not be read.
    #[error("the state cannot be read from SQLite: {0}")]
    Read(String),
    /// The etcd did not take a key.
    #[error("etcd does not take {key}: {source}")]
    Write {
        /// Which key.
        key: String,
        /// Its words.
        source: ClientError,
    },
    /// It was not to be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<RequestError> for TransferError {
    fn from(error: RequestError) -> Self {
        Self::Read(error.to_string())
    }
}

impl Datastore {
    /// Writes all that this store holds into `etcd`, which has to be empty; nobody may write to either meanwhile. `progress` is told how
    /// many keys are written, and of how many.
    ///
    /// # Errors
    /// [`TransferError`]: what the etcd has by then is a part.
    pub async fn transfer_to(
        &self,
        etcd: &EtcdCluster,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Transferred, TransferError> {
        let store = self.store();
        let all = KeyRange::From(Key::new());
        let order = Some(SortOrder::Ascend);
        // Values come one by one: together they may be more than the memory of a small machine.
        let range = Range { keys_only: true, order, target: SortTarget::Mod, ..Range::newest(all) };
        let mut listed = store.range(&range).await?;
        listed.kvs.retain(|kv| !kine::is_of_compaction(&kv.key));
        let to = etcd.connect().await?;
        let mut granted = HashSet::new();
        for (written, kv) in listed.kvs.iter().enumerate() {
            progress(written, listed.kvs.len());
            let refused = |source| TransferError::Write { key: String::from_utf8_lossy(&kv.key).into_owned(), source };
            let lease = lease(store, kv.entry.lease, &mut granted, &to).await.map_err(refused)?;
            // One whose lease has ended since is gone.
            let Some(now) = store.range(&Range::newest(KeyRange::One(kv.key.clone()))).await?.kvs.pop() else {
                continue;
            };
            let put = PutRequest { key: now.key, value: now.value.into(), lease: lease.0, ..PutRequest::default() };
            to.ask::<_, PutResponse>("/etcdserverpb.KV/Put", put).await.map_err(refused)?;
        }
        Ok(Transferred { keys: listed.kvs.len(), revision: listed.revision })
    }
}

/// The lease of a key, granted in the etcd too; none if it has none that ends.
async fn lease(
    store: &Store,
    id: LeaseId,
    granted: &mut HashSet<LeaseId>,
    to: &Connected<'_>,
) -> Result<LeaseId, ClientError> {
    let Some(state) = store.lease_state(id) else { return Ok(LeaseId::NONE) };
    if granted.insert(id) {
        let grant = LeaseGrantRequest { ttl: state.remaining.max(1), id: id.0 };
        to.ask::<_, LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", grant).await?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::contract_at;
    use crate::datastore::Options;
    use crate::remote::RemoteOptions;
    use crate::txn::{Op, Put, Txn};
    use crate::writer::Command;

    #[tokio::test]
    async fn all_keys_are_written_in_the_order_of_their_changes() {
        contract_at(async |_, url| {
            let options = RemoteOptions::at(&url);
            let etcd = EtcdCluster::new(&options).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let from = Datastore::open(Options::new(folder.path().join("state.db"))).await.unwrap();
            let client = from.client();
            let first = client.create("/t/changed", "old").await.unwrap();
            client.create("/t/kept", "value").await.unwrap();
            let gone = client.create("/t/gone", "").await.unwrap();
            client.delete("/t/gone", gone).await.unwrap();
            client.update("/t/changed", vec![0, 255], first).await.unwrap();
            let (lease, _) =
                from.store().command(|reply| Command::Grant { id: LeaseId(77), ttl: 600, reply }).await.unwrap();
            let put = Put {
                key: "/t/leased".into(),
                value: Some("event".into()),
                lease: Some(lease),
                return_previous: false,
            };
            from.store()
                .txn(Txn { guards: Vec::new(), success: vec![Op::Put(put)], failure: Vec::new() })
                .await
                .unwrap();

            let mut told = Vec::new();
            let moved = from.transfer_to(&etcd, |written, all| told.push((written, all))).await.unwrap();
            assert_eq!((moved.keys, moved.revision, told), (3, from.status().revision, vec![(0, 3), (1, 3), (2, 3)]));
            let mut there = crate::Client::remote(&options).unwrap().list("/t/").await.unwrap();
            there.sort_by_key(|stored| stored.modified);
            let there: Vec<_> = there.iter().map(|stored| (&stored.key[..], &stored.value[..])).collect();
            let expected: [(&[u8], &[u8]); 3] =
                [(b"/t/kept", b"value"), (b"/t/changed", &[0, 255]), (b"/t/leased", b"event")];
            assert_eq!(there, expected);
            from.close().await.unwrap();
        })
        .await;
    }
}
