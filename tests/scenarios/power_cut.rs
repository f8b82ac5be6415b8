//! The datastore's promise: a write that was acknowledged is there after a power cut.
//!
//! The database lies on a loop device that writes to its backing file without a cache: what the file holds at any instant is what a disk
//! would hold that lost its power then. The datastore is stopped under load, the file copied, and the copy opened.

use std::{collections::BTreeMap, path::PathBuf, sync::mpsc, thread};

use anyhow::{Context as _, Result};
use cluster_tests::{Network, Node, PATIENCE, step};
use etcd_client::{Channel, Client, GetOptions};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, task::JoinSet};

const CUTS: usize = 3;
const WRITERS: usize = 8;
const WRITES: usize = 1500;

/// Key and the last number written to it.
type Written = BTreeMap<String, u64>;

#[test]
fn acknowledged_writes_survive_power_cuts() {
    let network = Network::new();
    let node = Node::boot(&network, "node");
    for cut in 1..=CUTS {
        let written = step(&format!("power cut {cut} under load"), || power_cut(&node));
        println!("  {} writes were acknowledged", written.values().map(|last| last + 1).sum::<u64>());
        step("every acknowledged write is there", || {
            node.succeed("mkdir -p /mnt/after && mount -o loop /var/after.img /mnt/after");
            // The cut itself: what nobody flushed is lost.
            node.fail("grep -s unflushed /mnt/after/unflushed");
            let server = serve(&node, "/mnt/after");
            let stored = block_on(async { stored(connect(&node).await?).await });
            assert_eq!(lost(&written, &stored), Vec::<&str>::new());
            // The check itself: it misses a write that was never made.
            assert_eq!(lost(&BTreeMap::from([("key-0".into(), u64::MAX), ("no-key".into(), 0)]), &stored).len(), 2);
            node.succeed(&format!(
                "kill {server}; tail --pid={server} -f /dev/null; umount /mnt/after; rm /var/after.img"
            ));
        });
    }
}

/// Loads a fresh datastore with writes and takes its power away. The disk as it was then is `/var/after.img`.
fn power_cut(node: &Node) -> Written {
    node.succeed(
        "mkdir -p /mnt/disk && truncate -s 256M /var/disk.img && mkfs.ext4 -q /var/disk.img
         device=$(losetup --direct-io=on --find --show /var/disk.img)
         mount $device /mnt/disk && losetup -d $device
         test $(losetup -nO DIO $device) = 1",
    );
    let server = serve(node, "/mnt/disk");
    let (acknowledge, acknowledged) = mpsc::channel();
    let written = thread::scope(|scope| {
        scope.spawn(|| {
            block_on(async {
                let mut writers = JoinSet::new();
                for writer in 0..WRITERS {
                    writers.spawn(write_until_it_fails(connect(node).await?, writer, acknowledge.clone()));
                }
                drop(acknowledge);
                writers.join_all().await;
                Ok(())
            });
        });
        let mut written: Written = acknowledged.iter().take(WRITES).collect();
        node.succeed(&format!("echo unflushed > /mnt/disk/unflushed; kill -STOP {server}"));
        // What was acknowledged until now, and is in the clients' sockets still, has to be on the disk as well.
        node.succeed("cp --sparse=always /var/disk.img /var/after.img");
        node.succeed(&format!("kill -KILL {server}"));
        written.extend(acknowledged.iter());
        written
    });
    node.succeed("umount /mnt/disk && rm /var/disk.img");
    written
}

/// Starts a datastore on a folder and returns its process id.
fn serve(node: &Node, folder: &str) -> u32 {
    let job = node.background(&format!(
        "exec k3s datastore serve --endpoint sqlite://{folder}/state.db --listen unix:///run/datastore.sock"
    ));
    node.wait_until_succeeds(
        "busybox nc -w1 local:/run/datastore.sock </dev/null || ss -Hlx | grep -q /run/datastore.sock",
        PATIENCE,
    );
    job.pid
}

async fn connect(node: &Node) -> Result<Client> {
    let socket = node.path("/run/datastore.sock");
    let connector = tower::service_fn(move |_| {
        let socket: PathBuf = socket.clone();
        async move { std::io::Result::Ok(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let channel = tonic::transport::Endpoint::from_static("http://datastore").connect_with_connector(connector).await?;
    Client::from_channel(Channel::Tonic(channel), None).await.context("cannot connect to the datastore")
}

async fn write_until_it_fails(
    mut client: Client,
    writer: usize,
    acknowledge: mpsc::Sender<(String, u64)>,
) -> Result<()> {
    let key = format!("key-{writer}");
    for number in 0_u64.. {
        client.put(key.as_str(), number.to_string(), None).await?;
        acknowledge.send((key.clone(), number))?;
    }
    Ok(())
}

async fn stored(mut client: Client) -> Result<Written> {
    let answer = client.get("key-", Some(GetOptions::new().with_prefix())).await?;
    answer.kvs().iter().map(|pair| Ok((pair.key_str()?.to_owned(), pair.value_str()?.parse()?))).collect()
}

/// Keys that are not there, or whose number is older than the acknowledged one.
fn lost<'a>(acknowledged: &'a Written, stored: &Written) -> Vec<&'a str> {
    let lost = |(key, number): &(&String, &u64)| stored.get(*key).is_none_or(|stored| stored < *number);
    acknowledged.iter().filter(lost).map(|(key, _)| key.as_str()).collect()
}

fn block_on<T>(client: impl Future<Output = Result<T>>) -> T {
    let ran = Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(client));
    match ran {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}
