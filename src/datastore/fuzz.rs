//! What others send or leave us, as functions of arbitrary bytes. They panic where the store breaks a promise.
//!
//! `cargo xtask fuzz` feeds them. What bytes mean here may change freely: the seeds in `tests/fuzz/corpus` are only
//! where a fuzzer starts from.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;

use crate::etcd;
use crate::index::Entry;
use crate::key::{Key, KeyRange};
use crate::range::Range;
use crate::revision::{LeaseId, Revision};
use crate::txn::{Op, Put, Txn};
use crate::watch::{Due, Event, Hub, Interest, WatcherId};
use crate::writer::Command;
use crate::{Datastore, Options};

/// Whatever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// All that end with their requests; the watch of the health does not.
const PATHS: [&str; 20] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Cluster/MemberList",
    "/grpc.health.v1.Health/Check",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
];

/// A client's calls: path, length, message, and so on. The store must answer each, and have the same content after a
/// restart.
pub fn requests(data: &[u8]) {
    block_on(async {
        let directory = directory();
        let options =
            Options { value_cache: 1 << 10, ring: 1 << 10, ..Options::new(directory.path().join("state.db")) };
        let datastore = Datastore::open(options.clone()).await.expect("an empty directory is fine");
        let mut data = Input(data);
        while !data.is_empty() {
            let path = PATHS[usize::from(data.byte()) % PATHS.len()];
            let framed = data.byte();
            let length = usize::from(data.byte()) << 8 | usize::from(data.byte());
            let message = data.bytes(length);
            // gRPC's frame: not compressed, length. Now and then it is the fuzzer's too.
            let frame = [&[0], &u32::try_from(message.len()).unwrap_or(0).to_be_bytes()[..]].concat();
            let body = if framed == 0xff { message.to_vec() } else { [&frame, message].concat() };
            let status = etcd::ask(datastore.store(), path, body.into()).await;
            assert!(!status.message().contains("storage failed"), "{path}: {status}");
            assert!(!datastore.store().is_stopped(), "{path}: {status}");
        }
        let before = everything(&datastore).await;
        datastore.close().await.expect("it was not stopped");
        let datastore = Datastore::open(options).await.expect("it was closed properly");
        assert_unchanged(&before, &everything(&datastore).await);
        datastore.close().await.expect("it was not stopped");
    });
}

/// A database file: arbitrary bytes, one that a crash left and that was then changed here and there, or one with rows
/// that say strange things. It is refused and stays as it is, or it can be used.
pub fn database(data: &[u8]) {
    block_on(async {
        let directory = directory();
        let path = directory.path().join("state.db");
        let mut data = Input(data);
        match data.byte() % 4 {
            0 => fs::write(&path, data.0).expect("the directory is ours"),
            1 => rows(&path, data),
            _ => mutate(&path, data).await,
        }
        let before = contents(&path);
        match Datastore::open(Options::new(&path)).await {
            Err(refusal) => assert!(contents(&path) == before, "refused and changed: {refusal}"),
            Ok(datastore) => {
                let before = readable(&datastore).await;
                if datastore.close().await.is_ok()
                    && let Ok(datastore) = Datastore::open(Options::new(&path)).await
                {
                    if let (Some(before), Some(after)) = (before, readable(&datastore).await) {
                        assert_unchanged(&before, &after);
                    }
                    // What is damaged may be found only now.
                    let _ = datastore.close().await;
                }
            }
        }
    });
}

/// Watchers that come, read and fall behind while keys change: each gets each event that it wants, once and in order.
pub fn watches(data: &[u8]) {
    let mut data = Input(data);
    let mut hub = Hub::new(Revision(1), 600);
    let mut log: Vec<(Key, Entry)> = Vec::new();
    let mut watchers: Vec<Watcher> = Vec::new();
    while !data.is_empty() {
        match data.byte() % 4 {
            0 => {
                let interest = Interest { keys: data.key_range(), puts: data.flag(), deletes: data.flag() };
                let start = Revision(i64::from(data.byte() % 64));
                let (id, published) = hub.watch(interest.clone(), start, Arc::default());
                let start = if start == Revision::ZERO { published.next() } else { start };
                watchers.push(Watcher { id, interest, start, seen: Vec::new() });
            }
            1 => {
                let modified = hub.published().next();
                let version = i64::from(data.byte() % 2);
                let entry = Entry { modified, created: modified, version, lease: LeaseId::NONE };
                let (key, size) = (data.key(), usize::from(data.byte() % 32));
                let value = Bytes::from(vec![b'v'; size]);
                log.push((key.clone(), entry));
                hub.publish([Event { key, entry, value, previous: None }]);
            }
            _ if watchers.is_empty() => {}
            _ => {
                let watcher = usize::from(data.byte()) % watchers.len();
                watchers[watcher].pull(&mut hub, &log, usize::from(data.byte() % 8) + 1);
            }
        }
    }
    for mut watcher in watchers {
        while watcher.pull(&mut hub, &log, 3) {}
        assert_eq!(watcher.seen, watcher.wanted(&log));
    }
}

struct Watcher {
    id: WatcherId,
    interest: Interest,
    start: Revision,
    seen: Vec<Revision>,
}

impl Watcher {
    /// Takes the next step, of at most `limit` events. Returns whether there was one.
    fn pull(&mut self, hub: &mut Hub, log: &[(Key, Entry)], limit: usize) -> bool {
        match hub.next(self.id, limit, 200) {
            Due::Nothing => return false,
            Due::Events(events) => self.seen.extend(events.iter().map(|event| event.entry.modified)),
            Due::Log { from } => {
                let mut due: Vec<_> = self.wanted(log).into_iter().filter(|revision| *revision >= from).collect();
                let rest = due.split_off(limit.min(due.len()));
                let through = if rest.is_empty() { hub.published() } else { due[due.len() - 1] };
                self.seen.extend(due);
                hub.advance(self.id, through);
            }
        }
        true
    }

    fn wanted(&self, log: &[(Key, Entry)]) -> Vec<Revision> {
        let wanted =
            log.iter().filter(|(key, entry)| entry.modified >= self.start && self.interest.matches(key, entry));
        wanted.map(|(_, entry)| entry.modified).collect()
    }
}

/// What a store holds: revision, compacted revision, and each key.
type Content = (Revision, Revision, Vec<(Key, Entry, Bytes)>);

async fn everything(datastore: &Datastore) -> Content {
    readable(datastore).await.expect("all values can be read")
}

/// A lease may have ended in between: that has a revision of its own.
fn assert_unchanged(before: &Content, after: &Content) {
    if after.0 == before.0 {
        assert_eq!(after, before);
    } else {
        assert!(after.0 > before.0, "went back from {before:?} to {after:?}");
    }
}

/// `None` if a value cannot be read, from a file that is damaged.
async fn readable(datastore: &Datastore) -> Option<Content> {
    let range = Range::newest(KeyRange::From(Key::from_static(b"\0")));
    let page = datastore.store().range(&range).await.ok()?;
    let kvs = page.kvs.into_iter().map(|kv| (kv.key, kv.entry, kv.value));
    Some((page.revision, datastore.status().compacted, kvs.collect()))
}

/// A table of kine's with rows that nobody would write.
fn rows(path: &Path, mut data: Input<'_>) {
    const NAMES: [&[u8]; 6] = [b"/a", b"/b", b"compact_rev_key", b"compact_rev_key_apiserver", b"gap-7", b""];
    let database = rusqlite::Connection::open(path).expect("the directory is ours");
    database
        .execute_batch(
            "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;
             CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
                 create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB,
                 version INTEGER, lease_id INTEGER);
             CREATE TABLE k3s_lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL, expires INTEGER);",
        )
        .expect("the file is new");
    while !data.is_empty() {
        let name = NAMES[usize::from(data.byte()) % NAMES.len()];
        let mut number = || data.number();
        let row: rusqlite::Result<usize> = if name.is_empty() {
            database.execute("INSERT INTO k3s_lease VALUES (?1, ?2, ?3)", [number(), number(), number()])
        } else {
            database.execute(
                "INSERT INTO kine VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, x'31', NULL, ?8, ?9)",
                rusqlite::params![
                    number(),
                    String::from_utf8_lossy(name),
                    number(),
                    number(),
                    number(),
                    number(),
                    number(),
                    number(),
                    number()
                ],
            )
        };
        // An id that is there already, or a missing number.
        let _ = row;
    }
}

/// A database that crashed, with some bytes changed, cut or lost.
async fn mutate(path: &Path, mut data: Input<'_>) {
    let mut files = crashed().await.clone();
    let mut marked = true;
    while !data.is_empty() {
        let what = data.byte();
        let file = &mut files[usize::from(what & 1)];
        let at = usize::from(data.byte()) << 16 | usize::from(data.byte()) << 8 | usize::from(data.byte());
        let at = at % (file.len() + 1);
        match what >> 1 & 3 {
            0 => file.truncate(at),
            1 => marked = false,
            _ if at < file.len() => file[at] = data.byte(),
            _ => {}
        }
    }
    for (suffix, bytes) in ["", "-wal"].into_iter().zip(&files) {
        fs::write(format!("{}{suffix}", path.display()), bytes).expect("the directory is ours");
    }
    if marked {
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("it was just written"));
        fs::write(format!("{}-lock", path.display()), format!("open {inode}\n")).expect("the directory is ours");
    }
}

/// A database of a few keys and its write-ahead log, half of the keys in each.
async fn crashed() -> &'static [Vec<u8>; 2] {
    static CRASHED: OnceCell<[Vec<u8>; 2]> = OnceCell::const_new();
    let make = || async {
        let directory = directory();
        let path = directory.path().join("state.db");
        let datastore = Datastore::open(Options::new(&path)).await.expect("an empty directory is fine");
        for n in 0..12 {
            let key = Bytes::from(format!("/registry/{}", n % 5));
            let (value, lease) = (Some(Bytes::from(vec![b'v'; 150 * n])), Some(LeaseId::NONE));
            let put = Txn::of(Op::Put(Put { key, value, lease, return_previous: false }));
            datastore.store().txn(put).await.expect("there is room");
            if n == 6 {
                datastore.store().command(|reply| Command::Defragment { reply }).await.expect("there is room");
            }
        }
        let files = contents(&path).map(|bytes| bytes.expect("it was just written"));
        datastore.close().await.expect("it was not stopped");
        files
    };
    CRASHED.get_or_init(make).await
}

/// The bytes of the database and of its log. Whoever looks at a database makes an empty log.
fn contents(path: &Path) -> [Option<Vec<u8>>; 2] {
    ["", "-wal"].map(|suffix| fs::read(format!("{}{suffix}", path.display())).ok().filter(|bytes| !bytes.is_empty()))
}

/// Arbitrary bytes, taken from the front; zeros at their end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn flag(&mut self) -> bool {
        self.byte() > 63
    }

    /// Small ones, and now and then any, or none.
    fn number(&mut self) -> Option<i64> {
        match self.byte() {
            0xff => {
                let mut number = [0; 8];
                let taken = self.bytes(8);
                number[..taken.len()].copy_from_slice(taken);
                Some(i64::from_be_bytes(number))
            }
            0xfe => None,
            0xfd => Some(i64::MAX),
            0xfc => Some(i64::MIN),
            small => Some(i64::from(small)),
        }
    }

    fn key(&mut self) -> Key {
        Key::copy_from_slice(&[b'a' + self.byte() % 4])
    }

    fn key_range(&mut self) -> KeyRange {
        let key = self.key();
        match self.byte() % 3 {
            0 => KeyRange::One(key),
            1 => KeyRange::From(key),
            _ => KeyRange::Between { start: key, end: self.key() },
        }
    }
}

/// In memory: nobody cuts the power here, and flushes to a disk would be most of the time.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    directory.expect("there is a directory for temporary files")
}

/// Runs to the end, which has to come soon.
fn block_on(work: impl Future<Output = ()>) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME
        .get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("there are threads"));
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("it hangs") });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also what fuzzers have found once lies there.
    #[test]
    fn every_seed_passes() {
        for (name, run) in [("requests", requests as fn(&[u8])), ("database", database), ("watches", watches)] {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(name);
            let seeds: Vec<_> = fs::read_dir(&corpus).unwrap().map(|seed| seed.unwrap().path()).collect();
            assert!(!seeds.is_empty(), "{} is empty", corpus.display());
            for seed in seeds {
                println!("{}", seed.display());
                run(&fs::read(seed).unwrap());
            }
        }
    }
}
