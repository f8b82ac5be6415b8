//! Requests to a bucket: signed, made on a connection each, tried again where that may help.

use std::future::Future;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k3s_config::s3::S3Credentials;
use k3s_http::exchange_with;
use tokio::time::sleep;

use crate::{
    S3Error,
    connection::{Connection, Connector, with_cause},
    payload::Payload,
    refusal::{Refusal, RefusalKind},
    signature::Unsigned,
};

/// More than any refusal has.
pub(crate) const LARGEST_REFUSAL: usize = 64 << 10;
/// How often is tried what may pass by itself.
const ATTEMPTS: usize = 3;

/// Whoever asks for something in one bucket.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connector: Connector,
    pub(crate) credentials: S3Credentials,
    pub(crate) region: String,
    pub(crate) bucket: String,
    /// What paths begin with: the bucket, or nothing where the host tells it.
    pub(crate) base: String,
    /// For sentences.
    pub(crate) endpoint: String,
}

/// What is asked for.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// The object's whole name; empty for the bucket.
    pub(crate) key: &'a str,
    pub(crate) query: &'a [(&'a str, &'a str)],
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, key: &'a str) -> Self {
        Self { method, key, query: &[], headers: HeaderMap::new(), payload: Payload::Nothing }
    }
}

impl Client {
    /// The whole answer, of which there are at most `longest` bytes.
    pub(crate) async fn whole(&self, call: &Call<'_>, longest: usize) -> Result<Bytes, S3Error> {
        let receive = async |answer: Response<Incoming>| {
            let body = Limited::new(answer.into_body(), longest).collect().await;
            Ok(body.map_err(|error| self.broken(error.to_string()))?.to_bytes())
        };
        self.retry(|| self.send(call, receive)).await
    }

    /// One request on a connection of its own, whose successful answer `receive` takes.
    pub(crate) async fn send<T>(
        &self,
        call: &Call<'_>,
        receive: impl AsyncFnOnce(Response<Incoming>) -> Result<T, S3Error>,
    ) -> Result<T, S3Error> {
        let Connection { stream, proxied } = self.connector.open().await?;
        let now = Timestamp::now();
        let mut request = self.request(call, now, proxied.is_some()).await?;
        if let Some(credentials) = proxied.flatten() {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, credentials);
        }
        let asked = exchange_with(TokioIo::new(stream), request, async |answer: Response<Incoming>| {
            if answer.status().is_success() {
                return receive(answer).await;
            }
            let status = answer.status();
            let text = Limited::new(answer.into_body(), LARGEST_REFUSAL).collect().await;
            // A refusal that cannot be read is one all the same.
            let text = text.map(Collected::to_bytes).unwrap_or_default();
            Err(self.refused(status, &text, call, now))
        });
        asked.await.map_err(|error| self.broken(with_cause(&error)))?
    }

    async fn request(
        &self,
        call: &Call<'_>,
        now: Timestamp,
        through_proxy: bool,
    ) -> Result<Request<crate::payload::Body>, S3Error> {
        let host = self.connector.host_header();
        let path = format!("{}/{}", self.base, call.key);
        let unsigned = Unsigned {
            method: &call.method,
            host: &host,
            path: &path,
            query: call.query,
            headers: call.headers.clone(),
            sha256: call.payload.sha256(),
        };
        let target = unsigned.target();
        // A proxy wants to know the whole address.
        let target = if through_proxy { format!("http://{host}{target}") } else { target };
        let uri: Uri = target.parse().map_err(|_| self.unreadable("its address is none"))?;
        let mut request = Request::new(call.payload.body().await?);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = unsigned
            .sign(&self.credentials, &self.region, now)
            .map_err(|_| S3Error::Unsendable { endpoint: self.endpoint.clone() })?;
        if let Payload::File(file) = call.payload {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(file.bytes));
        }
        Ok(request)
    }

    /// Tries again what may pass by itself.
    pub(crate) async fn retry<T, F: Future<Output = Result<T, S3Error>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, S3Error> {
        for pause in ExponentialBuilder::default().with_max_times(ATTEMPTS - 1).with_jitter().build() {
            match attempt().await {
                Err(error) if error.is_passing() => sleep(pause).await,
                ended => return ended,
            }
        }
        attempt().await
    }

    fn refused(&self, status: StatusCode, text: &[u8], call: &Call<'_>, now: Timestamp) -> S3Error {
        let refusal = Refusal::parse(text);
        let (endpoint, bucket) = (self.endpoint.clone(), self.bucket.clone());
        let kind = refusal.kind(status.as_u16(), !call.key.is_empty());
        let message = refusal.words(status);
        match kind {
            RefusalKind::Bucket => S3Error::NoBucket { bucket, endpoint },
            RefusalKind::Object => S3Error::NoObject { location: format!("s3://{bucket}/{}", call.key) },
            RefusalKind::Key => S3Error::Key { endpoint, message },
            RefusalKind::Rights => S3Error::Denied { bucket, endpoint, message },
            RefusalKind::Clock => S3Error::Clock { endpoint, here: now.to_string() },
            RefusalKind::Region => S3Error::Region { bucket, message },
            RefusalKind::Other => S3Error::Answer { endpoint, status: status.as_u16(), message },
        }
    }

    pub(crate) fn broken(&self, why: String) -> S3Error {
        S3Error::Broken { endpoint: self.endpoint.clone(), why }
    }

    pub(crate) fn unreadable(&self, why: &str) -> S3Error {
        S3Error::Unreadable { endpoint: self.endpoint.clone(), why: why.to_owned() }
    }
}
