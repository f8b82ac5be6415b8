//! Taking places and keeping them.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http2::SendRequest};
use load::Client;
use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};

use crate::Met;

/// How long who was refused waits until it tries again.
const PAUSE: Duration = Duration::from_secs(1);
/// Streams on a connection.
const SHARED: usize = 100;
/// A megabyte and more, once the bench has made its objects. A watch that nobody reads takes no seat of kube-apiserver's fair queues.
const WATCH: &str = "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=0";

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

/// So many requests at once whose answers nobody reads.
pub(crate) fn streams(client: &Client, count: usize, met: &Met) {
    for _ in 0..count.div_ceil(SHARED) {
        let (client, met) = (client.clone(), met.clone());
        tokio::spawn(async move {
            loop {
                match client.http2().await {
                    Ok(sender) => stall(&client, sender, &met).await,
                    Err(_) => met.count("failed"),
                }
                sleep(PAUSE).await;
            }
        });
    }
}

/// Returns when the connection has ended.
async fn stall(client: &Client, mut sender: SendRequest<Empty<Bytes>>, met: &Met) {
    let mut unread = Vec::new();
    for _ in 0..SHARED {
        let request = Request::get(client.url(WATCH)).body(Empty::new()).expect("the path is one of a URL");
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
