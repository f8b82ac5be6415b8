//! The requests that clients of a Kubernetes API make.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use load::Client;

/// An HTTP/2 connection of its own. Its clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(client: &Client) -> Result<Self> {
        Ok(Self { client: client.clone(), sender: client.http2().await? })
    }

    /// The whole answer of a request that has to succeed.
    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        Ok(self.send(method, path, body).await?.collect().await?.to_bytes())
    }

    /// The answer as it comes.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Incoming> {
        let request = Request::builder()
            .method(&method)
            .uri(self.client.url(path))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let made = [StatusCode::OK, StatusCode::CREATED].contains(&head.status);
        ensure!(made, "{method} {path} was answered with {}", head.status);
        Ok(body)
    }
}
