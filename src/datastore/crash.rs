//! What is there after a restart, and on a full disk. What survives kills and power cuts is shown by `tests/datastore`.

use std::path::{Path, PathBuf};

use etcd_client::{Client, CompactionOptions, GetOptions, PutOptions};

use crate::Options;
use crate::contract::Served;

/// Fills a file system of `size` with 10 kB values. Returns the server, and how many writes it has acknowledged.
async fn fill(directory: &Path, size: &str, reserve: u64) -> (Disk, Served, i64) {
    run("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "none"], directory);
    let disk = Disk(directory.to_owned());
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
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: in a failed test the server may still have files open.
        run("umount", ["--lazy"], &self.0);
    }
}

fn run<const N: usize>(program: &str, args: [&str; N], path: &Path) {
    let output = std::process::Command::new(program).args(args).arg(path).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
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
    served.close().await;

    // The row that names the lease is there until it is compacted.
    let served = open().await;
    assert_eq!(served.client.lease_client().leases().await.unwrap().leases().len(), 1);
    served.close().await;
}
