//! Watchers that look on while others write.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use etcd_client::{EventType, WatchStream};
use load::{Log, Outcome, Size, Values};
use tokio::task::JoinSet;

use crate::phase;
use crate::registry::{OBJECTS, Registry};

/// Every change has to reach every watcher, with the value before it. For `rate` see [`phase::update`].
pub(crate) async fn run(registry: &mut Registry, watchers: usize, rate: Option<u32>, size: Size) -> Result<Outcome> {
    let revision = registry.connect().await?.revision().await?;
    let mut watching = JoinSet::new();
    for _ in 0..watchers {
        let mut client = registry.connect().await?;
        let stream = client.watch(OBJECTS, revision).await?;
        let values = registry.values().clone();
        watching.spawn(async move {
            // The connection ends with its client.
            let _client = client;
            look_on(stream, size.operations(), &values).await
        });
    }
    let started = Instant::now();
    phase::update(registry, size, rate).await?;
    let mut logs = Vec::new();
    while let Some(watcher) = watching.join_next().await {
        logs.push(watcher.context("a watcher panicked")??);
    }
    logs.push(Log { writes: size.operations(), ..Log::default() });
    Ok(Outcome::new(logs, started.elapsed()))
}

async fn look_on(mut stream: WatchStream, events: usize, values: &Values) -> Result<Log> {
    let mut log = Log::default();
    while log.latencies.len() < events {
        let message = stream.message().await?.context("a watch ended early")?;
        ensure!(!message.canceled(), "a watch was cancelled: {}", message.cancel_reason());
        for event in message.events() {
            ensure!(event.event_type() == EventType::Put, "a watcher saw a deletion that nobody asked for");
            let kv = event.kv().context("an event has no object")?;
            event
                .prev_kv()
                .with_context(|| format!("an event lacks the object before revision {}", kv.mod_revision()))?;
            log.latencies.push(values.age(kv.value())?);
        }
    }
    Ok(log)
}
