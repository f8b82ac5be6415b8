//! Servers of etcd's API elsewhere, asked for single keys.
//!
//! A connection lives for one request: what is asked here is asked at a server's start and when its token changes, and which of the
//! servers answers may have changed by then. Its certificates are read for it: they are renewed in place. The transactions are those of
//! kine's client, the only ones that kine understands.

use std::fmt;
use std::future::ready;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tower::{BoxError, service_fn};

use crate::client::{Change, ClientError, Guard, Stored};
use crate::error::Error;
use crate::etcd::messages::{
    self, Compare, CompareOperand, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    RequestOpKind, TxnRequest, TxnResponse,
};
use crate::key::{Key, KeyRange};
use crate::revision::Revision;
use crate::tls::ClientTls;

/// How long a server may take to accept a connection, and then to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Numbers of etcd's enumerations in comparisons.
const EQUAL: i32 = 0;
const MOD_REVISION: i32 = 2;

/// Where the servers are, and how they are to be talked to.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// All of them serve the same store; at least one.
    pub servers: Vec<RemoteServer>,
    /// PEM file of what `tls` servers' certificates are checked by; the operating system's authorities if `None`. Like the others it is
    /// read for each request.
    pub ca_file: Option<PathBuf>,
    /// PEM files of a certificate to show them and of its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[cfg(test)]
impl RemoteOptions {
    /// The store at `http://HOST:PORT`.
    pub(crate) fn at(url: &str) -> Self {
        let (host, port) = url.strip_prefix("http://").and_then(|address| address.rsplit_once(':')).unwrap();
        let server = RemoteServer::Tcp { tls: false, host: host.to_owned(), port: port.parse().unwrap() };
        Self { servers: vec![server], ca_file: None, client: None }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteServer {
    /// On a network.
    Tcp {
        /// Whether it is asked over TLS.
        tls: bool,
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// On this machine.
    Unix(PathBuf),
}

impl RemoteServer {
    fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. })
    }

    /// What a request names it by.
    fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// Why an answer of many parts did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Whoever gives it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Whoever takes it.
    #[error(transparent)]
    Taken(#[from] io::Error),
}

/// The store that they serve.
#[derive(Debug)]
pub(crate) struct Remote(RemoteOptions);

impl Remote {
    pub(crate) fn new(options: &RemoteOptions) -> Result<Self, Error> {
        let remote = Self(options.clone());
        // What cannot be used now is told before anything is asked.
        if options.servers.iter().any(RemoteServer::is_tls) {
            remote.tls()?;
        }
        Ok(remote)
    }

    fn tls(&self) -> Result<ClientTls, Error> {
        let client = self.0.client.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        ClientTls::load(self.0.ca_file.as_deref(), client)
    }

    /// The keys of a range, and the revision that the store has reached.
    pub(crate) async fn range(&self, keys: KeyRange) -> Result<(Revision, Vec<Stored>), ClientError> {
        let (key, range_end) = match keys {
            KeyRange::One(key) => (key, Bytes::new()),
            KeyRange::Between { start, end } => (start, end),
            KeyRange::From(start) => (start, Bytes::from_static(&[0])),
        };
        let request = RangeRequest { key, range_end, ..RangeRequest::default() };
        let reply: RangeResponse = self.ask("/etcdserverpb.KV/Range", request).await?;
        let stored =
            |kv: messages::KeyValue| Stored { key: kv.key, value: kv.value, modified: Revision(kv.mod_revision) };
        let revision = reply.header.map_or(Revision::ZERO, |header| Revision(header.revision));
        Ok((revision, reply.kvs.into_iter().map(stored).collect()))
    }

    /// The revision of the change; `None` if the guard did not hold.
    pub(crate) async fn change(
        &self,
        key: &Key,
        guard: Guard,
        change: Change,
    ) -> Result<Option<Revision>, ClientError> {
        let op = |request| RequestOp { request: Some(request) };
        let (modified, failure) = match guard {
            Guard::Absent => (Revision::ZERO, Vec::new()),
            Guard::At(modified) => {
                let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
                (modified, vec![op(RequestOpKind::Range(read))])
            }
        };
        let success = match change {
            Change::Put(value) => {
                RequestOpKind::Put(PutRequest { key: key.clone(), value: value.into(), ..PutRequest::default() })
            }
            Change::Delete => {
                RequestOpKind::DeleteRange(DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() })
            }
        };
        let compare = Compare {
            result: EQUAL,
            target: MOD_REVISION,
            key: key.clone(),
            operand: Some(CompareOperand::ModRevision(modified.0)),
            range_end: Bytes::new(),
        };
        let txn = TxnRequest { compare: vec![compare], success: vec![op(success)], failure };
        let reply: TxnResponse = self.ask("/etcdserverpb.KV/Txn", txn).await?;
        let revision = reply.header.map_or(Revision::ZERO, |header| Revision(header.revision));
        Ok(reply.succeeded.then_some(revision))
    }

    /// Asks the first server that lets itself be reached. Once a request is sent it is not sent again: it may have been heard.
    pub(crate) async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, ClientError>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        self.first_reached().await?.ask(path, request).await
    }

    /// As [`Self::ask`], with an answer of many parts, which `take` gets as they come; each may take as long as an answer may.
    pub(crate) async fn ask_for_stream<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        mut take: impl AsyncFnMut(A) -> io::Result<()>,
    ) -> Result<(), StreamError>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let Connected { server, channel } = self.first_reached().await?;
        let late = || ClientError::Unreachable(format!("{server}: no answer within {} s", PATIENCE.as_secs()));
        let mut grpc = Grpc::new(channel);
        let asked = async {
            grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.server_streaming(Request::new(request), PathAndQuery::from_static(path), codec).await
        };
        let parts = timeout(PATIENCE, asked).await.map_err(|_| late())?;
        let mut parts = parts.map_err(|status| refused(server, &status))?.into_inner();
        while let Some(part) =
            timeout(PATIENCE, parts.message()).await.map_err(|_| late())?.map_err(|status| refused(server, &status))?
        {
            take(part).await?;
        }
        Ok(())
    }

    /// A connection to the first server that lets itself be reached.
    pub(crate) async fn first_reached(&self) -> Result<Connected<'_>, ClientError> {
        let mut reasons = Vec::new();
        for server in &self.0.servers {
            match timeout(PATIENCE, self.connect(server)).await {
                Ok(Ok(channel)) => return Ok(Connected { server, channel }),
                Ok(Err(error)) => reasons.push(format!("{server}: {}", chain(error.as_ref()))),
                Err(_) => reasons.push(format!("{server}: no connection within {} s", PATIENCE.as_secs())),
            }
        }
        Err(ClientError::Unreachable(reasons.join("; ")))
    }

    async fn connect(&self, server: &RemoteServer) -> Result<Channel, BoxError> {
        let stream: Box<dyn Stream> = match server {
            RemoteServer::Tcp { tls, host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                if *tls {
                    let name = ServerName::try_from(host.clone())?;
                    Box::new(self.tls()?.connector().connect(name, stream).await?)
                } else {
                    Box::new(stream)
                }
            }
            RemoteServer::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        let mut stream = Some(TokioIo::new(stream));
        let only_one = move |_: Uri| ready(stream.take().ok_or("the connection has ended"));
        // The stream is there already; the URL is for the request's `:authority`.
        let endpoint = Endpoint::from_shared(format!("http://{}", server.authority()))?;
        Ok(endpoint.connect_with_connector(service_fn(only_one)).await?)
    }
}

/// A connection to one of them, for as many requests as are asked on it.
#[derive(Debug)]
pub(crate) struct Connected<'a> {
    server: &'a RemoteServer,
    channel: Channel,
}

impl Connected<'_> {
    pub(crate) async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, ClientError>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        answer(self.channel.clone(), path, request).await.map_err(|status| refused(self.server, &status))
    }
}

/// What bytes go over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl fmt::Display for RemoteServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls: true, .. } => write!(f, "https://{}", self.authority()),
            Self::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

async fn answer<Q, A>(channel: Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel);
    let asked = async {
        grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
        grpc.unary(Request::new(request), PathAndQuery::from_static(path), ProstCodec::default()).await
    };
    let reply = timeout(PATIENCE, asked)
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no answer within {} s", PATIENCE.as_secs())))??;
    Ok(reply.into_inner())
}

/// A server without a leader, or one that went away, may be asked again later; anything else is its word.
fn refused(server: &RemoteServer, status: &Status) -> ClientError {
    // A status of this side's own making has the cause in it: the connection broke.
    let cause = std::error::Error::source(status).map(|cause| format!(": {}", chain(cause))).unwrap_or_default();
    let why = format!("{server}: {}{cause}", status.message());
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => ClientError::Unreachable(why),
        _ if !cause.is_empty() => ClientError::Unreachable(why),
        _ => ClientError::Refused(why),
    }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text
}
