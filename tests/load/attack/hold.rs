//! Taking places and keeping them.

use std::time::Duration;

use anyhow::{Context, Result};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http2::SendRequest};
use load::Client;
use serde_json::Value;
use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};

use crate::Met;

/// How long who was refused waits until it tries again.
const PAUSE: Duration = Duration::from_secs(1);
/// Streams on a connection.
const SHARED: usize = 100;
/// What is watched.
const OBJECTS: &str = "/api/v1/namespaces/default/configmaps";

/// So many connections at once, each made again when it ends.
pub(crate) fn connections(client: &Client, count: usize, tls: bool, met: &Met) {
    for _ in 0..count {
        let (client, met) = (client.clone(), met.clone());
        tokio::spawn(async move {
            loop {
                let held = async {
                    let mut tcp = TcpStream::connect(client.address()).await?;
                    met.count("connected");
                    if tls {
                        let mut stream = client.handshake(tcp).await?;
                        met.count("TLS done");
                        stream.read(&mut [0; 256]).await
                    } else {
                        tcp.read(&mut [0; 256]).await
                    }
                };
                met.count(if held.await.is_ok() { "closed" } else { "failed" });
                sleep(PAUSE).await;
            }
        });
    }
}

/// So many watches at once of which no event is read.
pub(crate) async fn streams(client: &Client, count: usize, met: &Met) -> Result<()> {
    // From now on: a watch whose first events are not read keeps its seat in kube-apiserver's fair queues, and the others wait for one.
    let watch = client.url(&format!("{OBJECTS}?watch=1&resourceVersion={}", revision(client).await?));
    for _ in 0..count.div_ceil(SHARED) {
        let (client, watch, met) = (client.clone(), watch.clone(), met.clone());
        tokio::spawn(async move {
            loop {
                match client.http2_with_window(0).await {
                    Ok(sender) => stall(&watch, sender, &met).await,
                    Err(_) => met.count("failed"),
                }
                sleep(PAUSE).await;
            }
        });
    }
    Ok(())
}

/// The cluster's newest.
async fn revision(client: &Client) -> Result<String> {
    let mut sender = client.http2::<Empty<Bytes>>().await?;
    let request = Request::get(client.url(&format!("{OBJECTS}?limit=1"))).body(Empty::new())?;
    let list = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    let list: Value = serde_json::from_slice(&list)?;
    Ok(list["metadata"]["resourceVersion"].as_str().context("a list has no revision")?.to_owned())
}

/// Returns when the connection has ended.
async fn stall(watch: &str, mut sender: SendRequest<Empty<Bytes>>, met: &Met) {
    let mut unread = Vec::new();
    for _ in 0..SHARED {
        let request = Request::get(watch).body(Empty::new()).expect("the path is one of a URL");
        if sender.ready().await.is_err() {
            break;
        }
        match sender.send_request(request).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                met.count("stalled");
                unread.push(answer);
            }
            Ok(answer) => met.count(answer.status().as_str()),
            Err(_) => met.count("reset"),
        }
    }
    while !sender.is_closed() {
        sleep(PAUSE).await;
    }
    met.count("closed");
}
