//! The phases: what is asked, by how many clients at once, how often.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;
use load::{Log, Outcome, Size, dealt};
use tokio::time::sleep_until;

use crate::client::PAGE;
use crate::registry::{OBJECTS, Registry};
use crate::{mixed, watch};

/// A line of standard input. All but `create` need objects that are there.
#[derive(Subcommand)]
pub(crate) enum Phase {
    /// Make objects.
    Create(Size),
    /// Change objects, each guarded by the revision that it had.
    Update(Size),
    /// Read single objects.
    Get(Size),
    /// Read pages of 500 objects.
    List(Size),
    /// Count all objects.
    Count(Size),
    /// Change objects while watchers look on; an operation is an event that reaches a watcher, its latency counts from the request.
    Watch {
        /// How many watchers, each on a connection of its own.
        #[arg(long)]
        watchers: usize,
        /// Changes that are due a second, whether those before are done or not; without it each writer changes one object after the other.
        #[arg(long)]
        rate: Option<u32>,
        #[command(flatten)]
        size: Size,
    },
    /// What an API server does: see [`mixed`].
    Mixed(Size),
    /// Remove objects, each guarded by the revision that it had.
    Delete(Size),
    /// Forget history, while a client reads pages; an operation is a page, the seconds are those of the compaction.
    Compact,
}

impl Phase {
    pub(crate) async fn run(self, registry: &mut Registry) -> Result<Outcome> {
        match self {
            Self::Create(size) => create(registry, size).await,
            Self::Update(size) => update(registry, size, None).await,
            Self::Get(size) => get(registry, size).await,
            Self::List(size) => list(registry, size).await,
            Self::Count(size) => count(registry, size).await,
            Self::Watch { watchers, rate, size } => watch::run(registry, watchers, rate, size).await,
            Self::Mixed(size) => mixed::run(registry, size).await,
            Self::Delete(size) => delete(registry, size).await,
            Self::Compact => compact(registry).await,
        }
    }
}

async fn create(registry: &mut Registry, size: Size) -> Result<Outcome> {
    let names = registry.names(size.operations());
    let hands = dealt(names, size.clients()).into_iter().map(|names| (names, Vec::new())).collect();
    let values = registry.values().clone();
    let (outcome, hands) = registry
        .together(hands, move |mut client, (names, mut objects)| {
            let values = values.clone();
            async move {
                let mut log = Log::default();
                for name in names {
                    objects.push(log.write(client.create(name, values.make())).await?);
                }
                Ok((log, (Vec::new(), objects)))
            }
        })
        .await?;
    registry.collect(hands.into_iter().map(|(_, objects)| objects));
    Ok(outcome)
}

/// Also the writers of [`watch`]. With a `rate`, an object's change is due at its own time of a schedule, and its age counts from then, also
/// when its writer is late.
pub(crate) async fn update(registry: &mut Registry, size: Size, rate: Option<u32>) -> Result<Outcome> {
    let hands = registry.deal(size.clients())?.into_iter().zip(size.dealt()).collect();
    let values = registry.values().clone();
    // The clients have connected until then.
    let started = Instant::now() + Duration::from_millis(200);
    let (outcome, hands) = registry
        .together(hands, move |mut client, (mut objects, numbers)| {
            let values = values.clone();
            async move {
                let mut log = Log::default();
                for (turn, number) in numbers.iter().enumerate() {
                    let object = turn % objects.len();
                    let value = match rate {
                        Some(rate) => {
                            let due = started + Duration::from_secs(1).mul_f64(*number as f64 / f64::from(rate));
                            sleep_until(due.into()).await;
                            values.made_at(due)
                        }
                        None => values.make(),
                    };
                    log.write(client.update(&mut objects[object], value)).await?;
                }
                Ok((log, (objects, numbers)))
            }
        })
        .await?;
    registry.collect(hands.into_iter().map(|(objects, _)| objects));
    Ok(outcome)
}

async fn get(registry: &Registry, size: Size) -> Result<Outcome> {
    let keys = registry.keys(1)?;
    // Not in the order of the file: a stride that shares no factor with most counts.
    let key = |number: usize| keys[number * 7919 % keys.len()].clone();
    let hands = size.dealt().into_iter().map(|numbers| numbers.into_iter().map(key).collect()).collect();
    let reading = registry.together(hands, |mut client, keys: Vec<String>| async move {
        let mut log = Log::default();
        for key in &keys {
            log.read(client.get(key)).await?;
        }
        Ok((log, keys))
    });
    Ok(reading.await?.0)
}

async fn list(registry: &Registry, size: Size) -> Result<Outcome> {
    let starts = registry.keys(PAGE as usize)?;
    let start = |number: usize| starts[number % starts.len()].clone();
    let hands = size.dealt().into_iter().map(|numbers| numbers.into_iter().map(start).collect()).collect();
    let reading = registry.together(hands, |mut client, starts: Vec<String>| async move {
        let mut log = Log::default();
        for start in &starts {
            log.read(client.list(start, OBJECTS, 0)).await?;
        }
        Ok((log, starts))
    });
    Ok(reading.await?.0)
}

async fn count(registry: &Registry, size: Size) -> Result<Outcome> {
    let counting = registry.together(size.dealt(), |mut client, numbers| async move {
        let mut log = Log::default();
        for _ in &numbers {
            log.read(client.count(OBJECTS)).await?;
        }
        Ok((log, numbers))
    });
    Ok(counting.await?.0)
}

async fn delete(registry: &mut Registry, size: Size) -> Result<Outcome> {
    let hands = registry.deal(size.clients())?.into_iter().zip(size.dealt()).collect();
    let (outcome, hands) = registry
        .together(hands, |mut client, (mut objects, numbers)| async move {
            let mut log = Log::default();
            for object in objects.drain(..numbers.len().min(objects.len())) {
                log.write(client.delete(object)).await?;
            }
            Ok((log, (objects, numbers)))
        })
        .await?;
    registry.collect(hands.into_iter().map(|(objects, _)| objects));
    Ok(outcome)
}

async fn compact(registry: &Registry) -> Result<Outcome> {
    let starts = registry.keys(PAGE as usize)?;
    let (mut compacting, mut reading) = (registry.connect().await?, registry.connect().await?);
    let revision = reading.revision().await?;
    let started = Instant::now();
    let compaction = tokio::spawn(async move {
        compacting.compact(revision).await?;
        anyhow::Ok(started.elapsed())
    });
    let mut log = Log::default();
    for start in starts.iter().cycle() {
        log.read(reading.list(start, OBJECTS, 0)).await?;
        if compaction.is_finished() {
            break;
        }
    }
    Ok(Outcome::new([log], compaction.await??))
}
