//! What an acknowledgement is worth: a server process is killed under load, and its file opened again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use etcd_client::{Client, CompactionOptions, GetOptions, PutOptions, WatchOptions};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::contract::Served;
use crate::{Datastore, Options};

/// Names the database for [`serving_child`].
const DATABASE: &str = "K3S_DATASTORE_TEST_DATABASE";
const ROUNDS: usize = 5;
const CLIENTS: usize = 8;
const WRITES: usize = 300;

/// Not a test of its own: the server process of the tests here, started by them from the same binary.
#[tokio::test]
async fn serving_child() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let datastore = Datastore::open(Options::new(path)).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\nserving http://{}", listener.local_addr().unwrap());
    datastore.serve(listener, CancellationToken::new()).await.unwrap();
}

async fn spawn_server(path: &Path) -> (Child, Client) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::serving_child", "--nocapture"])
        .env(DATABASE, path)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = loop {
        let line = lines.next_line().await.unwrap().expect("the server should say where it listens");
        if let Some(url) = line.strip_prefix("serving ") {
            break url.to_owned();
        }
    };
    let client = Client::connect([url], None).await.unwrap();
    (child, client)
}

/// The last thing that was acknowledged about a key, and what may have happened since.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Revision of the put or delete, and the value; `None` when deleted.
    acknowledged: (i64, Option<String>),
    /// A request whose answer never came: `Some(None)` is a delete.
    unanswered: Option<Option<String>>,
}

/// Writes its own keys until the server is gone. Returns what it knows about them.
async fn write(mut client: Client, name: String, acks: tokio::sync::mpsc::Sender<i64>) -> HashMap<String, Known> {
    let mut known: HashMap<String, Known> = HashMap::new();
    for n in 0.. {
        let key = format!("/registry/{name}/{}", n % 7);
        let value = (n % 5 != 4).then(|| format!("{name} {n} {}", "x".repeat(n % 3000)));
        let answer = match &value {
            Some(value) => {
                let put = client.put(key.clone(), value.clone(), None).await;
                put.map(|put| put.header().unwrap().revision())
            }
            None => {
                let delete = client.delete(key.clone(), None).await;
                delete.map(|delete| delete.header().unwrap().revision())
            }
        };
        let entry = known.entry(key).or_default();
        match answer {
            Ok(revision) => {
                entry.acknowledged = (revision, value);
                // The test has seen enough when nobody takes this.
                let _ = acks.send(revision).await;
            }
            Err(_) => {
                entry.unanswered = Some(value);
                return known;
            }
        }
    }
    known
}

/// Writes from several clients, until `WRITES` are acknowledged and `stop` has ended the server; compacts on the way.
async fn load(client: &Client, round: usize, newest_seen: i64, stop: impl AsyncFnOnce()) -> HashMap<String, Known> {
    let (acks, mut acknowledged) = tokio::sync::mpsc::channel(1);
    let mut writers = JoinSet::new();
    for writer in 0..CLIENTS {
        writers.spawn(write(client.clone(), format!("{round}-{writer}"), acks.clone()));
    }
    for n in 0..WRITES {
        let revision = acknowledged.recv().await.unwrap();
        assert!(revision > newest_seen, "revision {revision} was given out before the crash");
        if n == WRITES / 2 {
            client.kv_client().compact(revision, Some(CompactionOptions::new())).await.unwrap();
        }
    }
    drop(acknowledged);
    stop().await;
    writers.join_all().await.into_iter().flatten().collect()
}

/// Looks for every acknowledged write. Returns the newest of their revisions.
async fn verify(client: &mut Client, known: HashMap<String, Known>) -> i64 {
    let mut newest = 0;
    for (key, Known { acknowledged: (revision, value), unanswered }) in known {
        let found = client.get(key.clone(), None).await.unwrap();
        let found = found.kvs().first().map(|kv| (kv.mod_revision(), kv.value_str().unwrap().to_owned()));
        let is_acknowledged = match (&found, &value) {
            (Some((at, found)), Some(value)) => (at, found) == (&revision, value),
            (found, value) => found.is_none() && value.is_none(),
        };
        let is_unanswered =
            unanswered.as_ref().is_some_and(|value| found.as_ref().map(|(_, value)| value) == value.as_ref());
        assert!(is_acknowledged || is_unanswered, "{key}: {value:?} at {revision} became {found:?}");
        newest = newest.max(revision);
    }
    let head = client.get("/", None).await.unwrap().header().unwrap().revision();
    assert!(head >= newest, "the store went back from {newest} to {head}");
    newest
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let mut newest_seen = 0;
    for round in 0..ROUNDS {
        let (mut child, mut client) = spawn_server(&path).await;
        let mut watch = client.watch("", Some(WatchOptions::new().with_all_keys())).await.unwrap();
        let watching = tokio::spawn(async move {
            let mut newest = 0;
            while let Ok(Some(message)) = watch.message().await {
                newest = message.events().iter().filter_map(|e| Some(e.kv()?.mod_revision())).fold(newest, i64::max);
            }
            newest
        });
        let known = load(&client, round, newest_seen, async || child.kill().await.unwrap()).await;

        let served = Served::open(Options::new(&path)).await;
        newest_seen = newest_seen.max(verify(&mut served.client.clone(), known).await);
        newest_seen = newest_seen.max(watching.await.unwrap());
        let head = served.client.kv_client().get("/", None).await.unwrap().header().unwrap().revision();
        assert!(head >= newest_seen, "what a watcher saw at {newest_seen} is gone at {head}");
        served.close().await;
    }
}

/// A power cut is what the disk has when the process stops, without what the kernel still holds: the file system is on
/// a loop device with direct I/O, and its backing file is copied while everything stands still.
#[tokio::test]
#[ignore = "needs root and a loop device"]
async fn acknowledged_writes_survive_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let image = |name: String| directory.path().join(name);
    let first = image("disk-0".to_owned());
    run("truncate", ["-s", "64M"], &first);
    run("mkfs.ext4", ["-q", "-F"], &first);
    let mut newest_seen = 0;
    for round in 0..ROUNDS {
        let (before, after) = (image(format!("disk-{round}")), image(format!("disk-{}", round + 1)));
        let mount = image(format!("mount-{round}"));
        std::fs::create_dir(&mount).unwrap();
        let disk = Disk::mount(&before, &mount);
        let (mut child, client) = spawn_server(&mount.join("state.db")).await;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        let known = load(&client, round, newest_seen, async || {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
            std::fs::copy(&before, &after).unwrap();
            child.kill().await.unwrap();
        })
        .await;
        drop(disk);

        let disk = Disk::mount(&after, &mount);
        let served = Served::open(Options::new(mount.join("state.db"))).await;
        newest_seen = newest_seen.max(verify(&mut served.client.clone(), known).await);
        served.close().await;
        drop(disk);
    }
}

/// Fills a file system of `size` with 10 kB values. Returns the server, and how many writes it has acknowledged.
async fn fill(directory: &Path, size: &str, reserve: u64) -> (Disk, Served, i64) {
    run("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "none"], directory);
    let disk = Disk { device: None, mount: directory.to_owned() };
    let served = Served::open(Options { reserve, ..Options::new(directory.join("state.db")) }).await;
    let mut client = served.client.clone();
    for written in 0.. {
        if let Err(refusal) = client.put(format!("/registry/{written:05}"), vec![b'v'; 10_000], None).await {
            assert!(refusal.to_string().contains("database space exceeded"), "{refusal}");
            return (disk, served, written);
        }
    }
    unreachable!("the file system is finite")
}

async fn count(client: &mut Client) -> i64 {
    let count = GetOptions::new().with_prefix().with_count_only();
    client.get("/registry/", Some(count)).await.unwrap().count()
}

#[tokio::test]
#[ignore = "needs root to mount a small file system"]
async fn a_full_disk_loses_no_acknowledged_write() {
    let directory = tempfile::tempdir().unwrap();
    // Without a reserve, so that SQLite itself runs into the end of the file system.
    let (_disk, served, written) = fill(directory.path(), "8M", 0).await;
    assert!(written > 100, "{written}");
    assert_eq!(count(&mut served.client.clone()).await, written);
    served.close().await;
    let served = Served::open(Options::new(directory.path().join("state.db"))).await;
    assert_eq!(count(&mut served.client.clone()).await, written);
    served.close().await;
}

#[tokio::test]
#[ignore = "needs root to mount a small file system"]
async fn deletes_and_compaction_make_room_again() {
    let directory = tempfile::tempdir().unwrap();
    let (_disk, served, written) = fill(directory.path(), "64M", 24 << 20).await;
    let mut client = served.client.clone();
    let mut newest = 0;
    for n in 0..written {
        newest = client.delete(format!("/registry/{n:05}"), None).await.unwrap().header().unwrap().revision();
    }
    client.compact(newest, Some(CompactionOptions::new().with_physical())).await.unwrap();
    client.defragment().await.unwrap();
    for n in 0..written / 2 {
        client.put(format!("/registry/{n:05}"), vec![b'v'; 10_000], None).await.unwrap();
    }
    served.close().await;
}

/// A mounted file system.
struct Disk {
    /// The loop device below it, if that is ours too.
    device: Option<String>,
    mount: PathBuf,
}

impl Disk {
    fn mount(image: &Path, mount: &Path) -> Self {
        let device = run("losetup", ["--direct-io=on", "--find", "--show"], image);
        run("mount", [&device], mount);
        Self { device: Some(device), mount: mount.to_owned() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: in a failed test the server may still be dying.
        run("umount", ["--lazy"], &self.mount);
        if let Some(device) = &self.device {
            run("losetup", ["--detach"], Path::new(device));
        }
    }
}

fn run<const N: usize>(program: &str, args: [&str; N], path: &Path) -> String {
    let output = std::process::Command::new(program).args(args).arg(path).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn everything_is_as_before_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db/state.db");
    let open = || Served::open(Options::new(&path));

    let served = open().await;
    let mut client = served.client.clone();
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let renewed = client.lease_grant(500, None).await.unwrap().id();
    let (mut keeper, mut kept) = client.lease_keep_alive(renewed).await.unwrap();
    keeper.keep_alive().await.unwrap();
    kept.message().await.unwrap();
    for n in 0..10 {
        client.put(format!("k{}", n % 3), format!("{n}"), None).await.unwrap();
    }
    client.put("leased", "v", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    client.put([0xff, 0x00, 0xfe], "not text", None).await.unwrap();
    client.delete("k1", None).await.unwrap();
    client.compact(9, Some(CompactionOptions::new().with_physical())).await.unwrap();
    let everything = || Some(GetOptions::new().with_all_keys());
    let before = client.get("", everything()).await.unwrap();
    served.close().await;
    assert!(!path.with_file_name("state.db-wal").exists(), "a clean stop leaves one file");

    let served = open().await;
    let mut client = served.client.clone();
    let after = client.get("", everything()).await.unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    let compacted = client.get("k0", Some(GetOptions::new().with_revision(8))).await.unwrap_err();
    assert!(compacted.to_string().contains("compacted"), "{compacted}");
    let ttl = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(ttl.granted_ttl() == 600 && ttl.ttl() > 500, "{ttl:?}");
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(client.get("leased", None).await.unwrap().count(), 0);
    assert_eq!(client.leases().await.unwrap().leases().len(), 1);
    served.close().await;
}
