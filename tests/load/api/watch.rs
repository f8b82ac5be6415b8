//! Watchers that look on while others write.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use load::{Log, Outcome, Size, Values};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::objects::{LIST, Object, Objects};
use crate::phase;

/// How many watches share a connection: a server takes 100 requests at a time.
const SHARED: usize = 50;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

/// Every change has to reach every watcher.
pub(crate) async fn run(objects: &Objects, watchers: usize, size: Size) -> Result<Outcome> {
    let path = format!("{LIST}?watch=1&resourceVersion={}", objects.revision().await?);
    let mut watching = JoinSet::new();
    let mut connection = objects.connect().await?;
    for watcher in 0..watchers {
        if watcher % SHARED == 0 {
            connection = objects.connect().await?;
        }
        let body = connection.send(Method::GET, &path, Vec::new()).await?;
        // The connection ends with its last sender.
        let connection = connection.clone();
        let values = objects.values().clone();
        watching.spawn(async move {
            let _connection = connection;
            look_on(body, size.operations(), &values).await
        });
    }
    let started = Instant::now();
    phase::update(objects, size).await?;
    let mut logs = Vec::new();
    while let Some(watcher) = watching.join_next().await {
        logs.push(watcher.context("a watcher panicked")??);
    }
    Ok(Outcome::new(logs, started.elapsed()))
}

async fn look_on(mut body: Incoming, events: usize, values: &Values) -> Result<Log> {
    let mut log = Log::default();
    let mut text = BytesMut::new();
    while log.latencies.len() < events {
        let frame = body.frame().await.context("a watch ended early")??;
        let Ok(data) = frame.into_data() else { continue };
        text.extend_from_slice(&data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let event: Event = serde_json::from_slice(&text.split_to(end + 1)).context("an event cannot be read")?;
            ensure!(event.kind == "MODIFIED", "a watcher saw {} that nobody asked for", event.kind);
            log.latencies.push(event.object.age(values)?);
        }
    }
    Ok(log)
}
