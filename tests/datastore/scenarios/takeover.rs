//! A database that goes from kine to us and back: each finds what the other left, and goes on.
//!
//! Objects are compared one by one, now and at an earlier revision, and the changes between as a watch tells them; first
//! with what was acknowledged, then with what the other served. Not compared is what kine does not keep: versions of keys,
//! ids of leases, and, of what we wrote, the value before a change.

use std::{collections::BTreeMap, ops::RangeInclusive};

use anyhow::{Context as _, Result, ensure};
use datastore_tests::{Datastore, PATIENCE, Place, Server, vfs::Disk};
use etcd_client::{Client, Compare, CompareOp, EventType, GetOptions, KeyValue, PutOptions, Txn, TxnOp, WatchOptions};
use rusqlite::Connection;
use tokio::time::timeout;

use crate::run::ours;

/// Stays of each datastore.
const ROUNDS: usize = 3;
/// Changes that a stay makes.
const CHANGES: usize = 150;
const PREFIX: &str = "/registry/pods/";
const KEYS: usize = 40;
/// Seconds that leases last, unless they are to end while they are looked at.
const LONG: i64 = 3600;
const COMPACT_KEY: &str = "compact_rev_key";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_kine_made_goes_back_and_forth() -> Result<()> {
    back_and_forth([Datastore::kine()?, ours()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_we_made_goes_back_and_forth() -> Result<()> {
    back_and_forth([ours(), Datastore::kine()?]).await
}

/// The comparison finds what it is for.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_tampered_with_is_not_the_same() -> Result<()> {
    const LAST: &str = "id = (SELECT max(id) FROM kine WHERE name = '/registry/pods/last')";
    const WRITTEN: &str = "id = (SELECT max(id) FROM kine WHERE deleted = 0 AND name LIKE '/registry/pods/%0')";
    const DELETED: &str = "id = (SELECT max(id) FROM kine WHERE deleted = 1)";
    for tampering in [
        format!("UPDATE kine SET value = x'00' WHERE {LAST}"),
        format!("UPDATE kine SET lease = 60 WHERE {LAST}"),
        format!("DELETE FROM kine WHERE {WRITTEN}"),
        format!("DELETE FROM kine WHERE {DELETED}"),
    ] {
        let scratch = tempfile::tempdir()?;
        let place = Place::folder(scratch.path())?;
        let server = Server::start(&Datastore::kine()?, &place, Disk::Honest).await?;
        let mut client = server.connect().await?;
        let mut life = Life::default();
        life.go_on(&mut client, None).await?;
        life.go_on(&mut client, None).await?;
        let left = View::of(&mut client, life.compacted, life.newest).await?;
        server.kill().await?;
        Connection::open(place.path().join("db/state.db"))?.execute(&tampering, [])?;

        let server = Server::start(&ours(), &place, Disk::Honest).await?;
        let found = View::of(&mut server.connect().await?, left.since, left.until).await;
        assert!(found.and_then(|found| left.compare(&found, &[])).is_err(), "{tampering} goes unnoticed");
        server.kill().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_one_granted_ends_under_the_other() -> Result<()> {
    for [first, second] in [[Datastore::kine()?, ours()], [ours(), Datastore::kine()?]] {
        let scratch = tempfile::tempdir()?;
        let place = Place::folder(scratch.path())?;
        let server = Server::start(&first, &place, Disk::Honest).await?;
        let mut client = server.connect().await?;
        let lease = client.lease_grant(2, None).await?.id();
        let put = TxnOp::put("/registry/events/a", "soon gone", Some(PutOptions::new().with_lease(lease)));
        let created = succeeded(&mut client, guarded("/registry/events/a", 0, put)).await?;
        server.kill().await?;

        let server = Server::start(&second, &place, Disk::Honest).await?;
        let mut client = server.connect().await?;
        let options = WatchOptions::new().with_start_revision(created + 1);
        let mut watch = client.watch("/registry/events/a", Some(options)).await?;
        let ended = timeout(PATIENCE, async {
            loop {
                let message = watch.message().await?.context("the watch has ended")?;
                if let Some(event) = message.events().first() {
                    return anyhow::Ok(event.event_type());
                }
            }
        });
        let ended = ended.await.with_context(|| format!("{} keeps a key for ever", second.name()))??;
        assert_eq!(ended, EventType::Delete);
        server.stop().await?;
    }
    Ok(())
}

/// Lets each have the database in turn.
async fn back_and_forth(datastores: [Datastore; 2]) -> Result<()> {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let scratch = tempfile::tempdir()?;
    let place = Place::folder(scratch.path())?;
    let database = place.path().join("db/state.db");
    let mut life = Life { random: fastrand::Rng::with_seed(seed), ..Life::default() };
    let mut left: Option<View> = None;
    let mut gaps = 0;
    for (stay, datastore) in (0..ROUNDS).flat_map(|_| &datastores).enumerate() {
        let name = datastore.name();
        let server = Server::start(datastore, &place, Disk::Honest).await?;
        let mut client = server.connect().await?;
        if let Some(left) = &left {
            let found = View::of(&mut client, left.since, left.until).await?;
            left.compare(&found, &life.ours).with_context(|| format!("{name} does not find what was left"))?;
        }
        // Nobody but us and SQLite opens a database of ours; kine's may be shared.
        let shared = if name == "kine" { Some(Connection::open(&database)?) } else { None };
        let written = life.go_on(&mut client, shared.as_ref()).await;
        let written = written.with_context(|| format!("stay {stay}, under {name}"))?;
        match shared {
            Some(shared) => gaps += filled_gaps(&shared)?,
            None => life.ours.push(written),
        }
        let view = View::of(&mut client, life.compacted, life.newest).await?;
        same("acknowledged objects", &life.objects, &view.objects).with_context(|| format!("{name} lost some"))?;
        let refused = client.get(PREFIX, Some(GetOptions::new().with_revision(life.compacted - 1))).await;
        let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("compacted"), "{name} reads before the compacted revision: {refused}");
        left = Some(view);
        // By three, so that each is stopped and killed.
        if stay % 3 == 0 {
            let status = server.stop().await?;
            ensure!(status.success(), "{name} does not stop cleanly: {status}");
        } else {
            server.kill().await?;
        }
    }
    ensure!(datastores[0].name() != "kine" || gaps > 0, "no revision was ever skipped");
    Ok(())
}

/// Lets the next revision be three later, as when transactions of a shared database are given up. Only a table that kine
/// made counts its revisions apart.
fn skip_revisions(database: &Connection) -> Result<()> {
    let counts = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence')";
    if database.query_row(counts, [], |row| row.get(0))? {
        database.execute("UPDATE sqlite_sequence SET seq = seq + 3 WHERE name = 'kine'", [])?;
    }
    Ok(())
}

/// The rows that kine has put where revisions were skipped.
fn filled_gaps(database: &Connection) -> Result<i64> {
    Ok(database.query_row("SELECT count(*) FROM kine WHERE name LIKE 'gap-%'", [], |row| row.get(0))?)
}

/// What was written over all stays.
#[derive(Default)]
struct Life {
    random: fastrand::Rng,
    objects: BTreeMap<String, Object>,
    newest: i64,
    compacted: i64,
    /// Revisions that were written under us.
    ours: Vec<RangeInclusive<i64>>,
}

impl Life {
    /// Creates, updates and deletes objects as kube-apiserver does, and compacts in the midst of it, where revisions are
    /// skipped if the database can be `shared`. Returns the revisions of this stay.
    async fn go_on(&mut self, client: &mut Client, shared: Option<&Connection>) -> Result<RangeInclusive<i64>> {
        let before = self.newest;
        for change in 0..CHANGES {
            self.change(client).await?;
            if change == CHANGES / 2 {
                self.compact(client).await?;
                shared.map_or(Ok(()), skip_revisions)?;
            }
        }
        // The last change is one that a watch tells.
        self.write(client, &format!("{PREFIX}last"), b"the end".to_vec(), 0).await?;
        Ok(before + 1..=self.newest)
    }

    async fn change(&mut self, client: &mut Client) -> Result<()> {
        let key = format!("{PREFIX}{}", self.random.usize(..KEYS));
        let lease = if self.random.u8(..5) == 0 { client.lease_grant(LONG, None).await?.id() } else { 0 };
        let length = *self.random.choice(&[0, 1, 300, 1500, 20_000]).expect("there are lengths");
        let value: Vec<u8> = std::iter::repeat_with(|| self.random.u8(..)).take(length).collect();
        match self.objects.get(&key).map(|object| object.modified) {
            Some(modified) if self.random.u8(..3) == 0 => {
                let delete = guarded(&key, modified, TxnOp::delete(key.as_str(), None)).or_else([get(&key)]);
                self.newest = succeeded(client, delete).await.with_context(|| format!("deleting {key}"))?;
                self.objects.remove(&key);
                Ok(())
            }
            _ => self.write(client, &key, value, lease).await,
        }
    }

    async fn write(&mut self, client: &mut Client, key: &str, value: Vec<u8>, lease: i64) -> Result<()> {
        let known = self.objects.get(key);
        let put = TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)));
        let txn = guarded(key, known.map_or(0, |object| object.modified), put);
        // kine takes a create only without an else.
        let txn = if known.is_some() { txn.or_else([get(key)]) } else { txn };
        let modified = succeeded(client, txn).await.with_context(|| format!("writing {key}"))?;
        let created = known.map_or(modified, |object| object.created);
        self.newest = modified;
        self.objects.insert(key.to_owned(), Object { value, created, modified, leased: lease != 0 });
        Ok(())
    }

    /// As kube-apiserver's compactor does: only who moves the key on compacts.
    async fn compact(&mut self, client: &mut Client) -> Result<()> {
        let target = self.newest - 10;
        let version = match client.get(COMPACT_KEY, None).await?.kvs() {
            [] => 0,
            [found, ..] => found.version(),
        };
        let moved = Txn::new()
            .when([Compare::version(COMPACT_KEY, CompareOp::Equal, version)])
            .and_then([TxnOp::put(COMPACT_KEY, target.to_string(), None)])
            .or_else([get(COMPACT_KEY)]);
        succeeded(client, moved).await.context("moving the compact key on")?;
        client.compact(target, None).await?;
        self.compacted = target;
        Ok(())
    }
}

fn guarded(key: &str, modified: i64, then: TxnOp) -> Txn {
    Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, modified)]).and_then([then])
}

fn get(key: &str) -> TxnOp {
    TxnOp::get(key, None)
}

/// Does what has to succeed. Returns its revision.
async fn succeeded(client: &mut Client, txn: Txn) -> Result<i64> {
    let done = client.txn(txn).await?;
    ensure!(done.succeeded(), "the guard does not hold");
    Ok(done.header().context("an answer without its header")?.revision())
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    leased: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    key: String,
    revision: i64,
    /// None if it was deleted.
    object: Option<Object>,
    /// The value and its revision before; none if it was created.
    previous: Option<(Vec<u8>, i64)>,
}

/// What a datastore serves of a stretch of revisions that are not compacted.
#[derive(Debug)]
struct View {
    since: i64,
    until: i64,
    head: i64,
    objects: BTreeMap<String, Object>,
    /// As of `since`.
    earlier: BTreeMap<String, Object>,
    /// After `since`.
    history: Vec<Change>,
    compact_key: Object,
}

impl View {
    async fn of(client: &mut Client, since: i64, until: i64) -> Result<Self> {
        let (objects, head) = list(client, None).await?;
        let (earlier, _) = list(client, Some(since)).await?;
        let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(since + 1);
        let mut watch = client.watch(PREFIX, Some(options)).await?;
        let mut history: Vec<Change> = Vec::new();
        while history.last().is_none_or(|change| change.revision < until) {
            let message = timeout(PATIENCE, watch.message()).await.context("the watch lacks changes")??;
            let message = message.context("the watch has ended")?;
            ensure!(!message.canceled(), "the watch is refused: {}", message.cancel_reason());
            for event in message.events() {
                let kv = event.kv().context("a change of nothing")?;
                let put = event.event_type() == EventType::Put;
                let previous = event.prev_kv().filter(|previous| previous.mod_revision() > 0);
                history.push(Change {
                    key: kv.key_str()?.to_owned(),
                    revision: kv.mod_revision(),
                    object: put.then(|| Object::of(kv)),
                    previous: previous.map(|previous| (previous.value().to_vec(), previous.mod_revision())),
                });
            }
        }
        let compact_key = client.get(COMPACT_KEY, None).await?;
        let compact_key = Object::of(compact_key.kvs().first().context("there is no compact key")?);
        Ok(Self { since, until, head, objects, earlier, history, compact_key })
    }

    /// Compares with what the next one serves. Of changes in `ours` kine does not know the value before.
    fn compare(&self, found: &Self, ours: &[RangeInclusive<i64>]) -> Result<()> {
        same("objects", &self.objects, &found.objects)?;
        same("earlier objects", &self.earlier, &found.earlier)?;
        ensure!(
            self.history.len() == found.history.len(),
            "{} changes, not {}",
            found.history.len(),
            self.history.len()
        );
        for (left, found) in self.history.iter().zip(&found.history) {
            let ours = ours.iter().any(|revisions| revisions.contains(&left.revision));
            let found = if ours { &Change { previous: left.previous.clone(), ..found.clone() } } else { found };
            ensure!(left == found, "the change is not {left:?} but {found:?}");
        }
        ensure!(self.compact_key == found.compact_key, "{COMPACT_KEY} is not {:?}", self.compact_key);
        ensure!(found.head >= self.head, "the revision goes back from {} to {}", self.head, found.head);
        Ok(())
    }
}

fn same(what: &str, left: &BTreeMap<String, Object>, found: &BTreeMap<String, Object>) -> Result<()> {
    for key in left.keys().chain(found.keys()) {
        let (left, found) = (left.get(key), found.get(key));
        ensure!(left == found, "{what}: {key} is not {left:?} but {found:?}");
    }
    Ok(())
}

impl Object {
    fn of(kv: &KeyValue) -> Self {
        Self {
            value: kv.value().to_vec(),
            created: kv.create_revision(),
            modified: kv.mod_revision(),
            leased: kv.lease() != 0,
        }
    }
}

async fn list(client: &mut Client, revision: Option<i64>) -> Result<(BTreeMap<String, Object>, i64)> {
    let options = GetOptions::new().with_prefix();
    let options = revision.into_iter().fold(options, GetOptions::with_revision);
    let listed = client.get(PREFIX, Some(options)).await?;
    let objects = listed.kvs().iter().map(|kv| Ok((kv.key_str()?.to_owned(), Object::of(kv))));
    let head = listed.header().context("an answer without its header")?.revision();
    Ok((objects.collect::<Result<_>>()?, head))
}
