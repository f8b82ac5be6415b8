//! A thousand watches through 6443, some of which nobody reads: everyone else is served as before.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use cluster_tests::{Network, Node, step};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{sync::oneshot, task::JoinSet};

use crate::api::{Api, Credentials, config_map, on_node};

/// Connections of clients that read, and watches on each: as of a controller with its informers.
const READERS: usize = 38;
const WATCHES: usize = 25;
/// Watches that are never read: half of them each alone on an HTTP/1.1 connection, half on one HTTP/2 connection beside watches that are.
const UNREAD: usize = 50;

/// Objects written while all of them watch, and the bytes in each: more than what lies between us and a client that does not read.
const WRITES: usize = 100;
const SIZE: usize = 8 << 10;

/// Requests of each measurement.
const REQUESTS: usize = 300;

#[test]
fn watches_that_nobody_reads_hold_nobody_up() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    step("an agentless server", || {
        server.start_k3s("--disable-agent");
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", cluster_tests::PATIENCE);
        server.kubectl("create namespace watched");
    });
    let credentials = Credentials::admin(&server).expect("the administrator has a certificate");
    step("a thousand watches", || on_node(&server, async || scenario(&credentials).await));
}

async fn scenario(credentials: &Credentials) -> Result<()> {
    let path = "/api/v1/namespaces/watched/configmaps";
    let watch = format!("{path}?watch=true&resourceVersion={}", revision(credentials, path).await?);
    let quiet = latencies(credentials, path).await?;

    let mut readers = JoinSet::new();
    let shared = Api::connect(credentials).await?;
    let mut apis = vec![shared.clone()];
    for _ in 1..READERS {
        apis.push(Api::connect(credentials).await?);
    }
    for api in &apis {
        for _ in 0..WATCHES {
            readers.spawn(read(watch_beside_others(api, &watch).await?));
        }
    }
    let mut unread = Vec::new();
    let mut alone = Vec::new();
    for number in 0..UNREAD {
        if number % 2 == 0 {
            unread.push(watch_beside_others(&shared, &watch).await?);
        } else {
            alone.push(watch_alone(credentials, &watch).await?);
        }
    }
    println!("  {} watches are open, {} of them are not read", readers.len() + UNREAD, UNREAD);

    let data = "x".repeat(SIZE);
    let (done, writing) = oneshot::channel();
    let writer = async {
        let api = Api::connect(credentials).await?;
        for number in 0..WRITES {
            api.call(Method::POST, path, Some(&config_map(&format!("object-{number}"), &data))).await?;
        }
        // Nobody measures any more if this is not heard.
        let _ = done.send(());
        anyhow::Ok(())
    };
    let measured = async {
        let loaded = latencies(credentials, path).await?;
        writing.await?;
        anyhow::Ok((loaded, latencies(credentials, path).await?))
    };
    let (written, measured) = tokio::join!(writer, measured);
    written?;
    let (loaded, after) = measured?;
    println!("  a read before the watches took   {quiet}");
    println!("  while all of them got events     {loaded}");
    println!("  with 50 that nobody reads        {after}");

    let events = readers.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(events.iter().all(|events| *events == WRITES), "readers missed events: {events:?}");
    drop((unread, alone));
    Ok(())
}

async fn revision(credentials: &Credentials, path: &str) -> Result<String> {
    let list = Api::connect(credentials).await?.call(Method::GET, path, None).await?;
    Ok(list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned())
}

/// Reads a watch until every written object has been seen, and counts them: an event is a line.
async fn read(mut watch: Incoming) -> Result<usize> {
    let mut events = 0;
    while events < WRITES {
        let Some(frame) = watch.frame().await else { break };
        events += frame?.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
    }
    Ok(events)
}

/// A watch on a connection that others share, with its head read and nothing more.
async fn watch_beside_others(api: &Api, path: &str) -> Result<Incoming> {
    let response = api.send(Method::GET, path, None).await?;
    ensure!(response.status().is_success(), "watch: {}", response.status());
    Ok(response.into_body())
}

/// A watch on a connection of its own, HTTP/1.1, with its head read and nothing more.
async fn watch_alone(credentials: &Credentials, path: &str) -> Result<(Incoming, http1::SendRequest<Empty<Bytes>>)> {
    let io = TokioIo::new(credentials.dial("http/1.1").await?);
    let (mut requests, connection) = http1::Builder::new().max_buf_size(8 << 10).handshake(io).await?;
    tokio::spawn(async move {
        // It ends when the scenario does.
        let _ = connection.await;
    });
    let request = Request::builder().uri(path).header("host", "127.0.0.1:6443").body(Empty::new())?;
    let response = requests.send_request(request).await?;
    ensure!(response.status().is_success(), "watch: {}", response.status());
    Ok((response.into_body(), requests))
}

/// How long requests take that nobody should hold up; each of them has to be answered.
async fn latencies(credentials: &Credentials, path: &str) -> Result<Latencies> {
    let api = Api::connect(credentials).await?;
    let mut sorted = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let started = Instant::now();
        api.call(Method::GET, &format!("{path}?limit=1"), None).await?;
        sorted.push(started.elapsed());
    }
    sorted.sort();
    Ok(Latencies { sorted })
}

struct Latencies {
    sorted: Vec<Duration>,
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percentile = |percent: usize| self.sorted[(self.sorted.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        write!(f, "{:.1} ms (median), {:.1} ms (99th percentile)", percentile(50), percentile(99))
    }
}
