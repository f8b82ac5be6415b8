//! Asking as fast as it goes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use load::Client;
use tokio::time::sleep;

use crate::Met;

/// How long who was refused a connection waits until it tries again.
const PAUSE: Duration = Duration::from_millis(10);
/// What is asked for: little, but not nothing.
const PATH: &str = "/api/v1/namespaces/default/configmaps/load-0";

/// So many connections at once, each with one request after the other; with a token of its own for each, or with what `client` has.
pub(crate) fn requests(client: &Client, connections: usize, tokens: bool, met: &Met) {
    for _ in 0..connections {
        let (client, met) = (client.clone(), met.clone());
        tokio::spawn(async move {
            loop {
                if ask(&client, tokens, &met).await.is_err() {
                    met.count("failed");
                    sleep(PAUSE).await;
                }
            }
        });
    }
}

/// On one connection, until it ends.
async fn ask(client: &Client, tokens: bool, met: &Met) -> anyhow::Result<()> {
    static GUESS: AtomicU64 = AtomicU64::new(0);
    let mut sender = client.http2::<Empty<Bytes>>().await?;
    loop {
        let mut request = Request::get(client.url(PATH));
        if tokens {
            let guess = GUESS.fetch_add(1, Ordering::Relaxed);
            request = request.header(header::AUTHORIZATION, format!("Bearer {guess:032x}"));
        }
        sender.ready().await?;
        let answer = sender.send_request(request.body(Empty::new())?).await?;
        met.count(answer.status().as_str());
        answer.into_body().collect().await?;
    }
}
