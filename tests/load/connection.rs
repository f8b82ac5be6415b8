//! The requests that clients of a Kubernetes API make.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};

use crate::Client;

/// An HTTP/2 connection of its own. Its clones share it.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// A new one.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn open(client: &Client) -> Result<Self> {
        Ok(Self { client: client.clone(), sender: client.http2().await? })
    }

    /// The whole answer of a request that has to succeed.
    ///
    /// # Errors
    /// As [`Self::send`], or the answer breaks off.
    pub async fn ask(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        Ok(self.send(method, path, body).await?.collect().await?.to_bytes())
    }

    /// The answer as it comes, of a request that has to succeed. A `PATCH` is a merge of JSON.
    ///
    /// # Errors
    /// The connection ends, or the answer is none of success.
    pub async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Incoming> {
        let (head, body) = self.request(method.clone(), path, body).await?.into_parts();
        let made = [StatusCode::OK, StatusCode::CREATED].contains(&head.status);
        ensure!(made, "{method} {path} was answered with {}", head.status);
        Ok(body)
    }

    /// The answer as it comes, whatever it is.
    ///
    /// # Errors
    /// The connection ends.
    pub async fn request(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(self.client.url(path))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, content)
            .body(Full::from(body))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}
