//! A client of the API that waits when there are too many.

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use load::{Client, Connection};
use tokio::time::sleep;

use crate::ledger::Ledger;

/// How often a request is made again, as client-go does.
const ATTEMPTS: u32 = 10;

/// One connection. Its clones share it.
#[derive(Clone)]
pub(crate) struct Caller {
    connection: Connection,
    ledger: Ledger,
}

impl Caller {
    pub(crate) async fn connect(client: &Client, ledger: Ledger) -> Result<Self> {
        Ok(Self { connection: Connection::open(client).await?, ledger })
    }

    /// The whole answer of a request that has to succeed.
    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        Ok(self.send(method, path, body).await?.collect().await?.to_bytes())
    }

    /// The answer as it comes, of a request that has to succeed: refused for now, it is made again when the server says.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Incoming> {
        let mut attempts = 0;
        loop {
            let (head, answer) = self.connection.request(method.clone(), path, body.clone()).await?.into_parts();
            match pause(head.status, &head.headers) {
                Some(pause) if attempts < ATTEMPTS => {
                    attempts += 1;
                    self.ledger.refused();
                    sleep(pause).await;
                }
                _ => {
                    let made = [StatusCode::OK, StatusCode::CREATED].contains(&head.status);
                    ensure!(made, "{method} {path} was answered with {}", head.status);
                    return Ok(answer);
                }
            }
        }
    }
}

/// For how long whoever got this answer has to wait before it asks again; `None` if it is final.
fn pause(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if ![StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status) {
        return None;
    }
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_told_when_asks_again() {
        let headers = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(pause(StatusCode::TOO_MANY_REQUESTS, &headers("2")), Some(Duration::from_secs(2)));
        assert_eq!(pause(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new()), None);
        assert_eq!(pause(StatusCode::FORBIDDEN, &headers("2")), None);
    }
}
