//! The store against a model that is too simple to be wrong: a list of everything that happened.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::sync::Arc;

use bytes::Bytes;
use proptest::option::weighted;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::error::RequestError;
use crate::follow::{Delivery, Step};
use crate::index::Entry;
use crate::key::{Key, KeyRange};
use crate::range::{KeyValue, Page, Range, RevisionBounds, SortOrder, SortTarget};
use crate::revision::{LeaseId, Revision};
use crate::store::Store;
use crate::txn::{Delete, Guard, Op, OpReply, Put, Relation, Target, Txn, TxnReply};
use crate::watch::{Interest, WatcherId};
use crate::writer::Command;
use crate::{Datastore, Options};

/// Some have a meaning in kine's table; the last may not be written.
const KEYS: [&str; 7] = ["/a", "/b", "/b/1", "/b/2", "compact_rev_key", "gap-7", "compact_rev_key_apiserver"];
const LEASES: [LeaseId; 2] = [LeaseId(7), LeaseId(8)];
/// Seconds: no lease ends by itself here.
const TTL: i64 = 1000;

/// Something that a client does.
#[derive(Clone, Debug)]
enum Action {
    Txn(Txn),
    Read(Range),
    Grant(LeaseId),
    Revoke(LeaseId),
    /// Of this part of the history, in percent.
    Compact(i64),
    /// The long-running watcher looks for what is new.
    Pull,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let lease = prop::sample::select(&LEASES[..]);
    prop_oneof![
        8 => put().prop_map(|put| Action::Txn(Txn::of(Op::Put(put)))),
        4 => delete().prop_map(|delete| Action::Txn(Txn::of(Op::Delete(delete)))),
        8 => txn().prop_map(Action::Txn),
        6 => range().prop_map(Action::Read),
        2 => lease.clone().prop_map(Action::Grant),
        1 => lease.prop_map(Action::Revoke),
        2 => (0..=110i64).prop_map(Action::Compact),
        2 => Just(Action::Pull),
        1 => Just(Action::Restart),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let ops = |most| prop::collection::vec(op(), 0..most);
    (prop::collection::vec(guard(), 0..3), ops(4), ops(3)).prop_map(|(guards, success, failure)| Txn {
        guards,
        success,
        failure,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![put().prop_map(Op::Put), delete().prop_map(Op::Delete), range().prop_map(Op::Range)]
}

fn put() -> impl Strategy<Value = Put> {
    let lease = prop_oneof![3 => Just(LeaseId::NONE), 2 => prop::sample::select(&LEASES[..])];
    (key(), weighted(0.9, value()), weighted(0.9, lease), any::<bool>())
        .prop_map(|(key, value, lease, return_previous)| Put { key, value, lease, return_previous })
}

fn delete() -> impl Strategy<Value = Delete> {
    let keys = prop_oneof![3 => key().prop_map(KeyRange::One), 1 => key_range()];
    (keys, any::<bool>()).prop_map(|(keys, return_previous)| Delete { keys, return_previous })
}

fn guard() -> impl Strategy<Value = Guard> {
    use Relation::{Equal, Greater, Less, NotEqual};
    let target = prop_oneof![
        (0..4i64).prop_map(Target::Version),
        revision().prop_map(Target::Create),
        revision().prop_map(Target::Mod),
        value().prop_map(Target::Value),
        prop::sample::select(&[LeaseId::NONE, LEASES[0]][..]).prop_map(Target::Lease),
    ];
    let relation = prop::sample::select(&[Equal, Greater, Less, NotEqual][..]);
    (key_range(), target, relation).prop_map(|(keys, target, relation)| Guard { keys, target, relation })
}

fn range() -> impl Strategy<Value = Range> {
    use SortTarget::{Create, Key, Mod, Value, Version};
    let order = weighted(0.5, prop::sample::select(&[SortOrder::Ascend, SortOrder::Descend][..]));
    let target = prop::sample::select(&[Key, Version, Create, Mod, Value][..]);
    let bound = || prop_oneof![3 => Just(Revision::ZERO), 1 => revision()];
    let bounds = || (bound(), bound()).prop_map(|(min, max)| RevisionBounds { min, max });
    let flag = || prop::bool::weighted(0.2);
    (key_range(), bound(), weighted(0.3, 1..5usize), order, target, flag(), flag(), bounds(), bounds()).prop_map(
        |(keys, revision, limit, order, target, keys_only, count_only, modified, created)| Range {
            keys,
            revision,
            limit,
            order,
            target,
            keys_only,
            count_only,
            modified,
            created,
        },
    )
}

fn interest() -> impl Strategy<Value = Interest> {
    let flag = || prop::bool::weighted(0.8);
    (key_range(), flag(), flag()).prop_map(|(keys, puts, deletes)| Interest { keys, puts, deletes })
}

fn key() -> impl Strategy<Value = Key> {
    prop::sample::select(&KEYS[..]).prop_map(|key| Key::from_static(key.as_bytes()))
}

/// Keys of the above; some ranges hold nothing.
fn key_range() -> impl Strategy<Value = KeyRange> {
    let end = prop::sample::select(&["", "", "\0", "/b/9", "/c", "z", "/a"][..]);
    (key(), end).prop_map(|(key, end)| KeyRange::new(key, Bytes::from_static(end.as_bytes())))
}

fn value() -> impl Strategy<Value = Bytes> {
    let size = prop_oneof![0..3usize, 0..3000usize];
    (b'v'..=b'w', size).prop_map(|(byte, size)| Bytes::from(vec![byte; size]))
}

/// One that most histories have come to.
fn revision() -> impl Strategy<Value = Revision> {
    (0..25i64).prop_map(Revision)
}

/// Everything that happened, in order. Index 0 is revision 2: a new store is at 1.
#[derive(Default)]
struct Model {
    log: Vec<Change>,
    compacted: Revision,
    leases: BTreeSet<LeaseId>,
}

/// One revision: a key gets a value, or loses it.
#[derive(Clone)]
struct Change {
    key: Key,
    value: Option<Bytes>,
    lease: LeaseId,
}

type Content = BTreeMap<Key, KeyValue>;

impl Model {
    fn head(&self) -> Revision {
        Revision(1 + self.log.len() as i64)
    }

    fn revisions(&self) -> impl Iterator<Item = (Revision, &Change)> {
        (2..).map(Revision).zip(&self.log)
    }

    fn at(&self, revision: Revision) -> Content {
        let mut content = Content::new();
        for (modified, Change { key, value, lease }) in self.revisions().take_while(|(at, _)| *at <= revision) {
            let before = content.remove(key);
            if let Some(value) = value.clone() {
                let (created, version) = before.map_or((modified, 0), |kv| (kv.entry.created, kv.entry.version));
                let entry = Entry { modified, created, version: version + 1, lease: *lease };
                content.insert(key.clone(), KeyValue { key: key.clone(), entry, value });
            }
        }
        content
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnReply, RequestError> {
        if [&txn.success, &txn.failure].into_iter().any(|ops| names_a_key_twice(ops)) {
            return Err(RequestError::DuplicateKey);
        }
        let before = self.at(self.head());
        let succeeded = txn.guards.iter().all(|guard| holds(guard, &before));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let mut changes = Vec::new();
        for op in ops {
            match op {
                Op::Range(range) => self.check(range)?,
                Op::Put(put) => changes.push(self.put(put, &before)?),
                Op::Delete(delete) => {
                    let keys = before.keys().filter(|key| delete.keys.contains(key)).cloned();
                    changes.extend(keys.map(|key| Change { key, value: None, lease: LeaseId::NONE }));
                }
            }
            if changes.len() > 1 {
                return Err(RequestError::Unsupported(String::new()));
            }
        }
        let replies = ops.iter().map(|op| {
            let previous = |keys: &KeyRange, wanted: bool| -> Vec<_> {
                before.values().filter(|kv| wanted && keys.contains(&kv.key)).cloned().collect()
            };
            match op {
                Op::Range(range) => OpReply::Range(self.page(range)),
                Op::Put(put) => {
                    self.log.append(&mut changes);
                    let previous = previous(&KeyRange::One(put.key.clone()), put.return_previous).pop();
                    OpReply::Put { revision: self.head(), previous }
                }
                Op::Delete(delete) => {
                    let deleted = before.keys().filter(|key| delete.keys.contains(key)).count();
                    if deleted > 0 {
                        self.log.append(&mut changes);
                    }
                    let previous = previous(&delete.keys, delete.return_previous);
                    OpReply::Delete { revision: self.head(), deleted, previous }
                }
            }
        });
        let replies = replies.collect();
        Ok(TxnReply { revision: self.head(), succeeded, replies })
    }

    fn put(&self, put: &Put, before: &Content) -> Result<Change, RequestError> {
        if put.key == KEYS[6] {
            return Err(RequestError::ReservedKey(KEYS[6].to_owned()));
        }
        let kept = before.get(&put.key);
        let value = put.value.as_ref().or(kept.map(|kv| &kv.value)).ok_or(RequestError::KeyNotFound)?.clone();
        let lease = put.lease.or(kept.map(|kv| kv.entry.lease)).ok_or(RequestError::KeyNotFound)?;
        if put.lease.is_some() && !lease.is_none() && !self.leases.contains(&lease) {
            return Err(RequestError::LeaseNotFound);
        }
        Ok(Change { key: put.key.clone(), value: Some(value), lease })
    }

    fn read(&self, range: &Range) -> Result<Page, RequestError> {
        self.check(range)?;
        Ok(self.page(range))
    }

    fn check(&self, range: &Range) -> Result<(), RequestError> {
        match range.revision {
            revision if revision > self.head() => Err(RequestError::FutureRevision),
            revision if revision > Revision::ZERO && revision < self.compacted => Err(RequestError::Compacted),
            _ => Ok(()),
        }
    }

    fn page(&self, range: &Range) -> Page {
        let at = if range.revision > Revision::ZERO { range.revision } else { self.head() };
        let mut kvs: Vec<_> = self.at(at).into_values().filter(|kv| range.keys.contains(&kv.key)).collect();
        let count = kvs.len();
        let within = |bounds: RevisionBounds, revision| {
            revision >= bounds.min && (bounds.max == Revision::ZERO || revision <= bounds.max)
        };
        kvs.retain(|kv| within(range.modified, kv.entry.modified) && within(range.created, kv.entry.created));
        kvs.sort_by(|a, b| {
            let ordering = match range.target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.entry.version.cmp(&b.entry.version),
                SortTarget::Create => a.entry.created.cmp(&b.entry.created),
                SortTarget::Mod => a.entry.modified.cmp(&b.entry.modified),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if range.order == Some(SortOrder::Descend) { ordering.reverse() } else { ordering }
        });
        let limit = range.limit.unwrap_or(usize::MAX);
        let more = !range.count_only && kvs.len() > limit;
        kvs.truncate(if range.count_only { 0 } else { limit });
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Page { revision: self.head(), kvs, more, count }
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<Revision, RequestError> {
        if !self.leases.remove(&lease) {
            return Err(RequestError::LeaseNotFound);
        }
        for (key, kv) in self.at(self.head()) {
            if kv.entry.lease == lease {
                self.log.push(Change { key, value: None, lease: LeaseId::NONE });
            }
        }
        Ok(self.head())
    }

    fn compact(&mut self, revision: Revision) -> Result<Revision, RequestError> {
        match revision {
            _ if revision > self.head() => return Err(RequestError::FutureRevision),
            _ if revision <= self.compacted => return Err(RequestError::Compacted),
            _ => self.compacted = revision,
        }
        Ok(self.head())
    }

    /// What a watcher from a revision on gets.
    fn deliveries(&self, interest: &Interest, from: Revision) -> Vec<Delivery> {
        let wanted = self.revisions().filter(|(revision, change)| {
            let kind = if change.value.is_some() { interest.puts } else { interest.deletes };
            *revision >= from && kind && interest.keys.contains(&change.key)
        });
        let delivery = |(revision, change): (Revision, &Change)| {
            let deleted =
                || KeyValue { key: change.key.clone(), entry: Entry::tombstone(revision), value: Bytes::new() };
            // What the compacted revision replaced is gone.
            let before = (revision > self.compacted).then(|| self.at(Revision(revision.0 - 1)));
            Delivery {
                kv: self.at(revision).remove(&change.key).unwrap_or_else(deleted),
                previous: before.and_then(|mut before| before.remove(&change.key)),
            }
        };
        wanted.map(delivery).collect()
    }
}

/// Whether a branch puts a key twice, or also deletes it.
fn names_a_key_twice(ops: &[Op]) -> bool {
    let twice = |a: &Op, b: &Op| match (a, b) {
        (Op::Put(a), Op::Put(b)) => a.key == b.key,
        (Op::Put(put), Op::Delete(delete)) | (Op::Delete(delete), Op::Put(put)) => delete.keys.contains(&put.key),
        _ => false,
    };
    ops.iter().enumerate().any(|(i, a)| ops[..i].iter().any(|b| twice(a, b)))
}

fn holds(guard: &Guard, content: &Content) -> bool {
    let nothing = KeyValue { key: Key::new(), entry: Entry::tombstone(Revision::ZERO), value: Bytes::new() };
    let mut kvs: Vec<_> = content.values().filter(|kv| guard.keys.contains(&kv.key)).collect();
    if kvs.is_empty() {
        if matches!(guard.target, Target::Value(_)) {
            return false;
        }
        kvs.push(&nothing);
    }
    kvs.iter().all(|KeyValue { entry, value, .. }| {
        let ordering = match &guard.target {
            Target::Version(given) => entry.version.cmp(given),
            Target::Create(given) => entry.created.cmp(given),
            Target::Mod(given) => entry.modified.cmp(given),
            Target::Value(given) => value.cmp(given),
            Target::Lease(given) => entry.lease.cmp(given),
        };
        match guard.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
            Relation::NotEqual => ordering.is_ne(),
        }
    })
}

/// Store, model, and a watcher that has followed from the beginning.
struct World {
    directory: TempDir,
    datastore: Datastore,
    model: Model,
    watcher: WatcherId,
    /// The last revision that the watcher has seen.
    seen: Revision,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Self::open(&directory).await;
        let watcher = watch(datastore.store(), &everything(), Revision(2));
        Self { directory, datastore, model: Model::default(), watcher, seen: Revision(1) }
    }

    async fn open(directory: &TempDir) -> Datastore {
        let mut options = Options::new(directory.path().join("state.db"));
        // Small, so that cache misses and reads of the log are as frequent as in a large store.
        options.value_cache = 16 << 10;
        options.ring = 4 << 10;
        Datastore::open(options).await.unwrap()
    }

    async fn act(&mut self, action: Action) {
        let store = self.datastore.store();
        match action {
            Action::Txn(txn) => assert_same(store.txn(txn.clone()).await, self.model.txn(&txn)),
            Action::Read(range) => assert_same(store.range(&range).await, self.model.read(&range)),
            Action::Grant(id) => {
                let granted = store.command(|reply| Command::Grant { id, ttl: TTL, reply }).await;
                let is_new = self.model.leases.insert(id);
                assert_eq!(granted, if is_new { Ok((id, TTL)) } else { Err(RequestError::LeaseExists) });
            }
            Action::Revoke(id) => {
                assert_eq!(store.command(|reply| Command::Revoke { id, reply }).await, self.model.revoke(id));
            }
            Action::Compact(percent) => {
                let revision = Revision(self.model.head().0 * percent / 100);
                let compacted = store.command(|reply| Command::Compact { revision, physical: true, reply }).await;
                assert_eq!(compacted, self.model.compact(revision));
            }
            Action::Pull => self.pull().await,
            Action::Restart => self.restart().await,
        }
    }

    async fn restart(&mut self) {
        self.pull().await;
        self.datastore.close().await.unwrap();
        self.datastore = Self::open(&self.directory).await;
        let status = self.datastore.status();
        assert_eq!((status.revision, status.compacted), (self.model.head(), self.model.compacted));
        // They are listed by their ends, and those depend on the clock.
        assert_eq!(self.datastore.store().lessor().ids().collect::<BTreeSet<_>>(), self.model.leases);
        self.watcher = watch(self.datastore.store(), &everything(), self.model.head().next());
    }

    /// Lets the watcher see all that is new, or learn that it was compacted.
    async fn pull(&mut self) {
        let store = self.datastore.store();
        match follow(store, self.watcher, &everything()).await {
            Ok(seen) => {
                // What was there before a change depends on when compaction came.
                let kvs = |deliveries: Vec<Delivery>| -> Vec<_> { deliveries.into_iter().map(|d| d.kv).collect() };
                assert_eq!(kvs(seen), kvs(self.model.deliveries(&everything(), self.seen.next())));
            }
            Err(compacted) => {
                assert!(self.seen.next() < compacted);
                store.hub().unwatch(self.watcher);
                self.watcher = watch(store, &everything(), self.model.head().next());
            }
        }
        self.seen = self.model.head();
        assert_eq!(store.hub().progress([self.watcher].into_iter()), Some(self.seen));
    }

    /// Reads and watches must find what the model has, from every revision that is left.
    async fn compare(&self, range: &Range, interest: &Interest) {
        let store = self.datastore.store();
        for revision in (self.model.compacted.0.max(1)..=self.model.head().0).map(Revision) {
            let range = Range { revision, ..range.clone() };
            assert_eq!(store.range(&range).await, self.model.read(&range), "at revision {revision}");
            let watcher = watch(store, interest, revision);
            let seen = follow(store, watcher, interest).await.unwrap();
            assert_eq!(seen, self.model.deliveries(interest, revision), "from revision {revision}");
            store.hub().unwatch(watcher);
        }
    }
}

/// Answers are compared whole, refusals by what they are.
fn assert_same<T: PartialEq + std::fmt::Debug>(found: Result<T, RequestError>, expected: Result<T, RequestError>) {
    match (&found, &expected) {
        (Err(found), Err(expected)) if discriminant(found) == discriminant(expected) => {}
        _ => assert_eq!(found, expected),
    }
}

fn everything() -> Interest {
    Interest { keys: KeyRange::From(Key::from_static(b"\0")), puts: true, deletes: true }
}

fn watch(store: &Store, interest: &Interest, from: Revision) -> WatcherId {
    store.hub().watch(interest.clone(), from, Arc::default()).0
}

/// All that a watcher has not seen yet, or the revision that it would have needed.
async fn follow(store: &Store, watcher: WatcherId, interest: &Interest) -> Result<Vec<Delivery>, Revision> {
    let mut seen = Vec::new();
    loop {
        match store.follow(watcher, interest, true).await.unwrap() {
            Step::UpToDate => return Ok(seen),
            Step::Compacted(revision) => return Err(revision),
            Step::Changes { changes, .. } => seen.extend(changes),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(
        actions in prop::collection::vec(action(), 1..60),
        range in range(),
        interest in interest(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for action in actions {
                world.act(action).await;
            }
            world.pull().await;
            world.compare(&range, &interest).await;
            world.restart().await;
            world.compare(&range, &interest).await;
            world.datastore.close().await.unwrap();
        });
    }
}
