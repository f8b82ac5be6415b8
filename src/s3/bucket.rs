//! What is done with a bucket.

use std::{future::Future, net::IpAddr, path::Path, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use k3s_config::s3::{BucketLookup, S3Settings};
use tokio::{fs::File, io::AsyncWriteExt as _, time::timeout};

use crate::{
    S3Error,
    client::{Call, Client, LARGEST_REFUSAL},
    connection::{Connector, with_cause},
    listing::Page,
    payload::{MeasuredFile, Payload},
};

/// What S3 takes in one piece.
const LARGEST_OBJECT: u64 = 5 << 30;
/// More than a page of a thousand keys has, at a kilobyte each.
const LARGEST_PAGE: usize = 4 << 20;
const KEYS_OF_A_PAGE: usize = 1000;
/// More are not read.
const PAGES: usize = 20;

/// The headers that k3s tells of a snapshot by.
const NODE: HeaderName = HeaderName::from_static("x-amz-meta-k3s-node-name");
const TOKEN_HASH: HeaderName = HeaderName::from_static("x-amz-meta-k3s-token-hash");

/// A bucket, and the folder in it that snapshots are in.
#[derive(Debug)]
pub struct Bucket {
    client: Client,
    folder: String,
    timeout: Duration,
}

/// A file in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name, without the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was put there.
    pub modified: Option<Timestamp>,
}

/// What k3s notes of a snapshot beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The node that took it.
    pub node: Option<String>,
    /// What tells apart the token that opens it.
    pub token_hash: Option<String>,
}

impl Bucket {
    /// The bucket of these settings; nobody is asked yet.
    ///
    /// # Errors
    /// [`S3Error::Authority`] and [`S3Error::Unreachable`], for what cannot be used.
    pub fn new(settings: &S3Settings) -> Result<Self, S3Error> {
        let host = &settings.endpoint.host;
        let in_host = match settings.lookup {
            BucketLookup::Dns => true,
            BucketLookup::Path => false,
            // A name with a dot is not below Amazon's certificate.
            BucketLookup::Auto => has_hosts_of_buckets(host) && !settings.bucket.contains('.'),
        } && host.parse::<IpAddr>().is_err();
        let (host, base) = if in_host {
            (format!("{}.{host}", settings.bucket), String::new())
        } else {
            (host.clone(), format!("/{}", settings.bucket))
        };
        let client = Client {
            connector: Connector::new(settings, host)?,
            credentials: settings.credentials.clone(),
            region: settings.region.clone(),
            bucket: settings.bucket.clone(),
            base,
            endpoint: settings.endpoint.to_string(),
        };
        Ok(Self { client, folder: settings.folder.clone(), timeout: settings.timeout })
    }

    /// Where a file of this name is, as k3s writes it.
    pub fn location(&self, name: &str) -> String {
        format!("s3://{}/{}", self.client.bucket, self.key(name))
    }

    /// Puts a file into the bucket. Whoever lists it sees all of it or nothing.
    ///
    /// # Errors
    /// [`S3Error::TooLarge`] above 5 GiB, and any other [`S3Error`].
    pub async fn upload(&self, name: &str, path: &Path, metadata: &Metadata) -> Result<(), S3Error> {
        let work = async {
            // A refusal while a file is being sent may be lost with the connection.
            self.page(None, 1).await?;
            let file = MeasuredFile::measure(path).await?;
            if file.bytes > LARGEST_OBJECT {
                let what = path.display().to_string();
                return Err(S3Error::TooLarge { what, bytes: file.bytes, room: LARGEST_OBJECT });
            }
            let key = self.key(name);
            let (headers, payload) = (metadata.headers(), Payload::File(&file));
            let call = Call { headers, payload, ..Call::new(Method::PUT, &key) };
            self.client.whole(&call, LARGEST_REFUSAL).await.map(drop)
        };
        self.within_timeout(work).await
    }

    /// What is in the folder, but for folders in it.
    ///
    /// # Errors
    /// [`S3Error::TooMany`] beyond 20 000, and any other [`S3Error`].
    pub async fn list(&self) -> Result<Vec<Object>, S3Error> {
        let work = async {
            let (prefix, mut objects, mut next) = (self.prefix(), Vec::new(), None::<String>);
            for _ in 0..PAGES {
                let page = self.page(next.as_deref(), KEYS_OF_A_PAGE).await?;
                next = page.next().map_err(|why| self.client.unreadable(why))?.map(str::to_owned);
                objects.extend(page.contents.into_iter().filter_map(|entry| {
                    let name = entry.key.strip_prefix(&prefix)?;
                    let is_file = !name.is_empty() && !name.contains('/');
                    is_file.then(|| Object { name: name.to_owned(), bytes: entry.size, modified: entry.last_modified })
                }));
                if next.is_none() {
                    return Ok(objects);
                }
            }
            Err(S3Error::TooMany { location: self.location(""), limit: PAGES * KEYS_OF_A_PAGE })
        };
        self.within_timeout(work).await
    }

    /// What is noted of a file.
    ///
    /// # Errors
    /// [`S3Error::NoObject`], and any other [`S3Error`].
    pub async fn metadata(&self, name: &str) -> Result<Metadata, S3Error> {
        let key = self.key(name);
        let call = Call::new(Method::HEAD, &key);
        let receive = async |answer: Response<Incoming>| Ok(Metadata::of(answer.headers()));
        self.within_timeout(self.client.retry(|| self.client.send(&call, receive))).await
    }

    /// Deletes a file; one that is not there is gone already.
    ///
    /// # Errors
    /// Any [`S3Error`].
    pub async fn delete(&self, name: &str) -> Result<(), S3Error> {
        let key = self.key(name);
        let call = Call::new(Method::DELETE, &key);
        match self.within_timeout(self.client.whole(&call, LARGEST_REFUSAL)).await {
            Ok(_) | Err(S3Error::NoObject { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes a file of the bucket to `to`, if it has at most `room` bytes. What is not whole does not stay.
    ///
    /// # Errors
    /// [`S3Error::NoObject`], [`S3Error::TooLarge`], and any other [`S3Error`].
    pub async fn download(&self, name: &str, to: &Path, room: u64) -> Result<(), S3Error> {
        let key = self.key(name);
        let call = Call::new(Method::GET, &key);
        let receive = async |answer: Response<Incoming>| self.write(name, answer, to, room).await;
        let written = self.within_timeout(self.client.retry(|| self.client.send(&call, receive))).await;
        if written.is_err() {
            // It may not have been made.
            let _ = tokio::fs::remove_file(to).await;
        }
        written
    }

    async fn write(&self, name: &str, answer: Response<Incoming>, to: &Path, room: u64) -> Result<(), S3Error> {
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let bytes = length.ok_or_else(|| self.client.unreadable("it does not say how large an object is"))?;
        if bytes > room {
            return Err(S3Error::TooLarge { what: self.location(name), bytes, room });
        }
        let failed = || S3Error::file("write", to);
        let mut file = File::create(to).await.map_err(failed())?;
        // HTTP ends it where it said.
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.client.broken(with_cause(&error)))?;
            if let Ok(data) = frame.into_data() {
                file.write_all(&data).await.map_err(failed())?;
            }
        }
        file.sync_all().await.map_err(failed())
    }

    async fn page(&self, token: Option<&str>, keys: usize) -> Result<Page, S3Error> {
        let (prefix, keys) = (self.prefix(), keys.to_string());
        let mut query = vec![("list-type", "2"), ("delimiter", "/"), ("max-keys", &keys), ("prefix", &prefix)];
        query.extend(token.map(|token| ("continuation-token", token)));
        let call = Call { query: &query, ..Call::new(Method::GET, "") };
        let text = self.client.whole(&call, LARGEST_PAGE).await?;
        Page::parse(&text).map_err(|why| self.client.unreadable(&why))
    }

    async fn within_timeout<T>(&self, work: impl Future<Output = Result<T, S3Error>>) -> Result<T, S3Error> {
        let late = || S3Error::Timeout { endpoint: self.client.endpoint.clone(), after: self.timeout };
        timeout(self.timeout, work).await.unwrap_or_else(|_| Err(late()))
    }

    fn prefix(&self) -> String {
        if self.folder.is_empty() { String::new() } else { format!("{}/", self.folder) }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix())
    }
}

impl Metadata {
    fn headers(&self) -> HeaderMap {
        let noted = [(NODE, &self.node), (TOKEN_HASH, &self.token_hash)];
        let noted = noted.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        // What a header cannot hold is not noted.
        noted.filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?))).collect()
    }

    fn of(headers: &HeaderMap) -> Self {
        let get = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
        Self { node: get(NODE), token_hash: get(TOKEN_HASH) }
    }
}

/// Those of whom every bucket has a host of its own: Amazon, and Alibaba, as k3s has it.
fn has_hosts_of_buckets(host: &str) -> bool {
    [".amazonaws.com", ".amazonaws.com.cn"].iter().any(|end| host.ends_with(end)) || host.contains("aliyun")
}
