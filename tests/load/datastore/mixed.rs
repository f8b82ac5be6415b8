//! What a store sees of an API server with 32 busy clients.
//!
//! Of 20 operations 8 change an object, 8 renew a node's lease (300 bytes), one makes an object, one removes one, one reads a page of 500,
//! and one is a consistent read from the watch cache: it asks for the newest revision and waits until the cache has seen everything up to
//! it. All the while a cache watches each of the two resources, and asks for progress when a read waits for it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etcd_client::{WatchRequestSender, WatchResponseStream};
use load::{Log, Outcome, Size, Values, dealt};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Client, Object};
use crate::registry::{OBJECTS, Registry};

const LEASES: &str = "/registry/leases/";
/// How often kube-apiserver asks for progress while a read waits.
const PROGRESS: Duration = Duration::from_millis(100);

pub(crate) async fn run(registry: &mut Registry, size: Size) -> Result<Outcome> {
    let mut first = registry.connect().await?;
    let mut leases = Vec::new();
    for number in 0..size.clients() {
        let name = format!("{LEASES}kube-node-lease/node-{number:03}");
        // An earlier phase may have made it.
        let there = first.list(&name, LEASES, 0).await?;
        let there = there.iter().find(|kv| kv.key() == name.as_bytes()).map(etcd_client::KeyValue::mod_revision);
        leases.push(match there {
            Some(revision) => Object { key: name, revision },
            None => first.create(name, registry.values().short().make()).await?,
        });
    }
    let revision = first.revision().await?;
    let cache = Arc::new(Cache::start(registry.connect().await?, OBJECTS, revision).await?);
    let leases_cache = Cache::start(registry.connect().await?, LEASES, revision).await?;

    let names = dealt(registry.names(size.operations().div_ceil(20) + size.clients()), size.clients());
    let objects = registry.deal(size.clients())?;
    let hands = (leases.into_iter().zip(objects).zip(names).zip(size.dealt()))
        .map(|(((lease, objects), names), numbers)| Worker { lease, objects, names, turns: numbers.len() })
        .collect();
    let values = registry.values().clone();
    let (outcome, workers) = registry
        .together(hands, |client, worker: Worker| worker.work(client, values.clone(), Arc::clone(&cache)))
        .await?;
    registry.collect(workers.into_iter().map(|worker| worker.objects));
    leases_cache.stop().await?;
    Arc::into_inner(cache).context("a client outlived its work")?.stop().await?;
    Ok(outcome)
}

/// What one client works on.
struct Worker {
    lease: Object,
    objects: Vec<Object>,
    /// Of objects to make.
    names: Vec<String>,
    turns: usize,
}

impl Worker {
    async fn work(mut self, mut client: Client, values: Values, cache: Arc<Cache>) -> Result<(Log, Self)> {
        let short = values.short();
        let mut log = Log::default();
        for turn in 0..self.turns {
            match turn % 20 {
                4 => match self.names.pop() {
                    Some(name) => self.objects.push(log.write(client.create(name, values.make())).await?),
                    None => log.write(client.update(&mut self.lease, short.make())).await?,
                },
                9 => drop(log.read(client.list(OBJECTS, OBJECTS, 0)).await?),
                14 if self.objects.len() > 1 => {
                    let oldest = self.objects.remove(0);
                    log.write(client.delete(oldest)).await?;
                }
                19 => log.read(cache.read(&mut client)).await?,
                odd if odd % 2 == 1 => log.write(client.update(&mut self.lease, short.make())).await?,
                _ => {
                    let object = turn % self.objects.len();
                    log.write(client.update(&mut self.objects[object], values.make())).await?;
                }
            }
        }
        Ok((log, self))
    }
}

/// kube-apiserver's watch cache of one resource, without the objects.
struct Cache {
    /// Everything up to this revision was seen.
    seen: watch::Receiver<i64>,
    requests: Mutex<WatchRequestSender>,
    watching: JoinSet<Result<()>>,
}

impl Cache {
    async fn start(mut client: Client, prefix: &str, revision: i64) -> Result<Self> {
        let (requests, stream) = client.watch(prefix, revision).await?.split();
        let (see, seen) = watch::channel(revision);
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            // The connection ends with its client.
            let _client = client;
            follow(stream, see).await
        });
        Ok(Self { seen, requests: Mutex::new(requests), watching })
    }

    /// A consistent read.
    async fn read(&self, client: &mut Client) -> Result<()> {
        let newest = client.revision().await?;
        let mut seen = self.seen.clone();
        while *seen.borrow() < newest {
            self.requests.lock().await.request_progress().await?;
            match timeout(PROGRESS, seen.wait_for(|seen| *seen >= newest)).await {
                Ok(reached) => drop(reached.context("the watch of a cache ended")?),
                Err(_) => continue,
            }
        }
        Ok(())
    }

    /// Fails if the watch had failed.
    async fn stop(mut self) -> Result<()> {
        if let Some(failed) = self.watching.try_join_next() {
            failed.context("a cache panicked")??;
        }
        self.watching.shutdown().await;
        Ok(())
    }
}

/// An event counts for its own revision only: the store may be further. A message without events is progress.
async fn follow(mut stream: WatchResponseStream, see: watch::Sender<i64>) -> Result<()> {
    loop {
        let message = stream.message().await?.context("the watch of a cache ended")?;
        ensure!(!message.canceled(), "the watch of a cache was cancelled: {}", message.cancel_reason());
        let newest = match message.events().last().and_then(etcd_client::Event::kv) {
            Some(kv) => kv.mod_revision(),
            None => message.header().context("a message has no header")?.revision(),
        };
        see.send_modify(|seen| *seen = newest.max(*seen));
    }
}
