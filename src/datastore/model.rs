//! The store against a model that is too simple to be wrong: a list of everything that happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::error::RequestError;
use crate::follow::Step;
use crate::key::{Key, KeyRange};
use crate::range::Range;
use crate::revision::{LeaseId, Revision};
use crate::store::Store;
use crate::txn::{Delete, Guard, Op, OpReply, Put, Relation, Target, Txn};
use crate::watch::{Interest, WatcherId};
use crate::writer::Command;
use crate::{Datastore, Options};

const KEYS: [&str; 6] = ["/a", "/b", "/b/1", "/b/2", "compact_rev_key", "gap-7"];

/// Something that a client does.
#[derive(Clone, Debug)]
enum Action {
    Put {
        key: usize,
        size: usize,
    },
    Delete {
        key: usize,
    },
    /// Only if the key is at its newest revision plus `off`.
    Guarded {
        key: usize,
        off: i64,
        delete: bool,
    },
    /// Of this part of the history, in percent.
    Compact {
        percent: i64,
    },
    /// The long-running watcher looks for what is new.
    Pull,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0..KEYS.len();
    prop_oneof![
        8 => (key.clone(), 0..3000usize).prop_map(|(key, size)| Action::Put { key, size }),
        4 => key.clone().prop_map(|key| Action::Delete { key }),
        6 => (key, -1..=1i64, any::<bool>()).prop_map(|(key, off, delete)| Action::Guarded { key, off, delete }),
        2 => (0..=110i64).prop_map(|percent| Action::Compact { percent }),
        2 => Just(Action::Pull),
        1 => Just(Action::Restart),
    ]
}

/// A range of the keys above; some hold nothing.
fn key_range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![Just(""), Just("\0"), Just("/b/9"), Just("/c"), Just("z"), Just("/a")];
    (0..KEYS.len(), end).prop_map(|(key, end)| KeyRange::new(name(key), Bytes::from_static(end.as_bytes())))
}

fn name(key: usize) -> Key {
    Key::from_static(KEYS[key].as_bytes())
}

/// A change, as model and store are compared by: revision, key, value unless deleted, value before.
type Seen = (i64, Key, Option<Bytes>, Option<Bytes>);

/// Everything that happened, in order. Index 0 is revision 2: a new store is at 1.
#[derive(Default)]
struct Model {
    log: Vec<(Key, Option<Bytes>)>,
    compacted: i64,
}

impl Model {
    fn head(&self) -> i64 {
        1 + self.log.len() as i64
    }

    fn at(&self, revision: i64) -> BTreeMap<Key, (i64, Bytes)> {
        let mut state = BTreeMap::new();
        for (revision, (key, value)) in (2..=revision).zip(&self.log) {
            match value {
                Some(value) => state.insert(key.clone(), (revision, value.clone())),
                None => state.remove(key),
            };
        }
        state
    }

    fn modified(&self, key: &Key) -> i64 {
        self.at(self.head()).get(key).map_or(0, |(revision, _)| *revision)
    }

    fn changes(&self, keys: &KeyRange, from: i64) -> Vec<Seen> {
        let all = (2..).zip(&self.log).filter(|(revision, (key, _))| *revision >= from && keys.contains(key));
        all.map(|(revision, (key, value))| {
            // What the compacted revision replaced is gone.
            let before = if revision > self.compacted { self.at(revision - 1).remove(key) } else { None };
            (revision, key.clone(), value.clone(), before.map(|(_, value)| value))
        })
        .collect()
    }
}

/// Store, model, and a watcher that has followed from the beginning.
struct World {
    directory: TempDir,
    datastore: Datastore,
    model: Model,
    watcher: WatcherId,
    /// The last revision that the watcher has seen.
    seen: i64,
}

fn everything() -> Interest {
    Interest { keys: KeyRange::From(Key::from_static(b"\0")), puts: true, deletes: true }
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Self::open(&directory).await;
        let watcher = Self::watch(datastore.store(), 2);
        Self { directory, datastore, model: Model::default(), watcher, seen: 1 }
    }

    async fn open(directory: &TempDir) -> Datastore {
        let mut options = Options::new(directory.path().join("state.db"));
        // Small, so that cache misses and reads of the log are as frequent as in a large store.
        options.value_cache = 16 << 10;
        options.ring = 4 << 10;
        Datastore::open(options).await.unwrap()
    }

    fn watch(store: &Store, from: i64) -> WatcherId {
        store.hub().watch(everything(), Revision(from), Arc::new(Notify::new())).0
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Put { key, size } => {
                let value = Bytes::from(vec![b'v'; size]);
                let reply = self.datastore.store().txn(Txn::of(put(key, &value))).await.unwrap();
                self.model.log.push((name(key), Some(value)));
                assert_eq!(reply.revision.0, self.model.head());
            }
            Action::Delete { key } => {
                let there = self.model.modified(&name(key)) > 0;
                let reply = self.datastore.store().txn(Txn::of(delete(key))).await.unwrap();
                if there {
                    self.model.log.push((name(key), None));
                }
                assert_eq!(reply.revision.0, self.model.head());
                let deleted = usize::from(there);
                assert!(matches!(reply.replies[..], [OpReply::Delete { deleted: n, .. }] if n == deleted));
            }
            Action::Guarded { key, off, delete: deletes } => {
                let modified = self.model.modified(&name(key));
                let value = Bytes::from_static(b"guarded");
                let guard = Guard {
                    keys: KeyRange::One(name(key)),
                    target: Target::Mod(Revision(modified + off)),
                    relation: Relation::Equal,
                };
                let op = if deletes { delete(key) } else { put(key, &value) };
                let look = Op::Range(Range::newest(KeyRange::One(name(key))));
                let txn = Txn { guards: vec![guard], success: vec![op], failure: vec![look] };
                let reply = self.datastore.store().txn(txn).await.unwrap();
                assert_eq!(reply.succeeded, off == 0);
                if let [OpReply::Range(page)] = &reply.replies[..] {
                    let found: Vec<_> = page.kvs.iter().map(|kv| (kv.entry.modified.0, kv.value.clone())).collect();
                    let expected: Vec<_> = self.model.at(self.model.head()).remove(&name(key)).into_iter().collect();
                    assert_eq!(found, expected);
                }
                if off == 0 && !(deletes && modified == 0) {
                    self.model.log.push((name(key), (!deletes).then_some(value)));
                }
                assert_eq!(reply.revision.0, self.model.head());
            }
            Action::Compact { percent } => {
                let revision = self.model.head() * percent / 100;
                let command = |reply| Command::Compact { revision: Revision(revision), physical: true, reply };
                let done = self.datastore.store().command(command).await;
                let expected = match revision {
                    _ if revision > self.model.head() => Err(RequestError::FutureRevision),
                    _ if revision <= self.model.compacted => Err(RequestError::Compacted),
                    _ => Ok(Revision(self.model.head())),
                };
                assert_eq!(done, expected);
                if done.is_ok() {
                    self.model.compacted = revision;
                }
            }
            Action::Pull => self.pull().await,
            Action::Restart => {
                self.pull().await;
                self.datastore.close().await.unwrap();
                self.datastore = Self::open(&self.directory).await;
                let status = self.datastore.status();
                assert_eq!((status.revision.0, status.compacted.0), (self.model.head(), self.model.compacted));
                self.watcher = Self::watch(self.datastore.store(), self.model.head() + 1);
            }
        }
    }

    /// Lets the watcher see all that is new, or learn that it was compacted.
    async fn pull(&mut self) {
        let seen = follow(self.datastore.store(), self.watcher, &everything()).await;
        match seen {
            Ok(seen) => {
                let without_before = |changes: Vec<Seen>| -> Vec<_> {
                    changes.into_iter().map(|(revision, key, value, _)| (revision, key, value)).collect()
                };
                let expected = self.model.changes(&everything().keys, self.seen + 1);
                assert_eq!(without_before(seen), without_before(expected));
            }
            Err(compacted) => {
                assert!(self.seen + 1 < compacted);
                self.datastore.store().hub().unwatch(self.watcher);
                self.watcher = Self::watch(self.datastore.store(), self.model.head() + 1);
            }
        }
        self.seen = self.model.head();
        let progress = self.datastore.store().hub().progress([self.watcher].into_iter());
        assert_eq!(progress, Some(Revision(self.seen)));
    }

    /// Reads and watches of a range must find what the model has, from every revision that is left.
    async fn compare(&self, keys: &KeyRange) {
        let store = self.datastore.store();
        for revision in self.model.compacted.max(1)..=self.model.head() {
            let mut range = Range::newest(keys.clone());
            range.revision = Revision(revision);
            let page = store.range(&range).await.unwrap();
            let found: Vec<_> = page.kvs.into_iter().map(|kv| (kv.key, (kv.entry.modified.0, kv.value))).collect();
            let expected: Vec<_> = self.model.at(revision).into_iter().filter(|(key, _)| keys.contains(key)).collect();
            assert_eq!(found, expected, "at revision {revision}");

            let interest = Interest { keys: keys.clone(), ..everything() };
            let watcher = store.hub().watch(interest.clone(), Revision(revision), Arc::default()).0;
            let seen = follow(store, watcher, &interest).await.unwrap();
            assert_eq!(seen, self.model.changes(keys, revision), "from revision {revision}");
            store.hub().unwatch(watcher);
        }
    }
}

/// All that a watcher has not seen yet, or the revision that it would have needed.
async fn follow(store: &Store, watcher: WatcherId, interest: &Interest) -> Result<Vec<Seen>, i64> {
    let mut seen = Vec::new();
    loop {
        match store.follow(watcher, interest, true).await.unwrap() {
            Step::UpToDate => return Ok(seen),
            Step::Compacted(revision) => return Err(revision.0),
            Step::Changes { changes, .. } => seen.extend(changes.into_iter().map(|change| {
                let value = (!change.kv.entry.is_tombstone()).then_some(change.kv.value);
                (change.kv.entry.modified.0, change.kv.key, value, change.previous.map(|kv| kv.value))
            })),
        }
    }
}

fn put(key: usize, value: &Bytes) -> Op {
    let (value, lease) = (Some(value.clone()), Some(LeaseId::NONE));
    Op::Put(Put { key: name(key), value, lease, return_previous: false })
}

fn delete(key: usize) -> Op {
    Op::Delete(Delete { keys: KeyRange::One(name(key)), return_previous: false })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(
        actions in prop::collection::vec(action(), 1..60),
        keys in key_range(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for action in actions {
                world.act(action).await;
            }
            world.pull().await;
            world.compare(&keys).await;
            world.act(Action::Restart).await;
            world.compare(&keys).await;
            world.datastore.close().await.unwrap();
        });
    }
}
