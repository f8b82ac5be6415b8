//! HTTP/2 connections to kube-apiserver, shared by the requests of one [`Party`].
//!
//! Each connection is a task that opens it, watches over it and takes it out of the [`Slots`] when it takes no more
//! streams. A request holds a [`Lease`] on its stream until its answer's last byte, or until its client has gone; one that is given
//! up before it is answered, for [`REST`] more.
//!
//! The connection's flow-control window has room for every stream's: a client that stops reading stops its own stream and
//! no other. What streams may hold, and so what a client that reads none of them can fill, goes by the connection's [`Rank`].

use std::{
    error::Error as _,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, request};
use hyper::{
    body::Body as _,
    client::conn::http2::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use k3s_http::{Body, empty};
use k3s_listener::Trimmer;
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::{
    backpressure::Backpressure,
    body,
    coalescing::{CoalescingWriter, Driver},
    connector::{Connector, Unreachable},
    paced::{Awaited, Paced},
    party::Party,
    rank::Rank,
    slots::{Ending, Exhausted, Id, LIMIT, Slots},
    tasks::Tasks,
};

/// What kube-apiserver may send on a connection, bytes: more than all its streams' windows, those included that have ended here only. h2
/// takes small pieces that wait for an attack when they are many for this window.
const CONNECTION_WINDOW: u32 = 25 << 20;
/// What of a request waits here until kube-apiserver reads it, bytes.
const SEND_BUFFER: usize = 64 << 10;
/// Connections that a request is offered to while they close under it.
const ATTEMPTS: usize = 5;
/// All headers of an answer, bytes.
const HEADERS: u32 = 64 << 10;
/// How long kube-apiserver is given to stop working on a request that was given up.
const REST: Duration = Duration::from_secs(1);
/// How long an answer's head waits for its body to begin.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long a connection without streams is kept that is not its party's first, or that one client's connection alone can use.
const SHORT_IDLE: Duration = Duration::from_secs(5);
/// Connections that have to end for the memory that they and their streams took to be given back.
const MANY: usize = 4;

/// Connections to kube-apiserver. They end with it.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    _cut: DropGuard,
}

#[derive(Debug)]
struct Shared {
    connectors: Connectors,
    /// How long a connection without streams is kept.
    idle: Duration,
    slots: Mutex<Slots<Handle>>,
    tasks: Tasks,
    trimmer: Trimmer,
    /// Whether the last attempt to connect succeeded, so that only changes are logged.
    reachable: AtomicBool,
}

/// The two ways to kube-apiserver, which share nothing.
#[derive(Debug)]
pub(super) struct Connectors {
    /// Our client certificate makes it believe the `X-Remote-*` headers.
    pub(super) trusted: Connector,
    /// Nothing does.
    pub(super) plain: Connector,
}

#[derive(Debug, Clone)]
struct Handle {
    phase: watch::Receiver<Phase>,
    emptied: Arc<Notify>,
    /// Its token was refused: it is not kept without streams.
    refused: CancellationToken,
    /// It has no streams, and its place is another one's.
    displaced: CancellationToken,
}

/// `Opening ──▶ Open` or `Opening ──▶ Failed`.
#[derive(Debug, Clone)]
enum Phase {
    Opening,
    Open(Open),
    Failed(Arc<Unreachable>),
}

/// How requests are sent on a connection.
#[derive(Debug, Clone)]
struct Open {
    sender: SendRequest<Body>,
    awaited: Awaited,
}

/// What drives a connection.
type Driven = Connection<TokioIo<Io>, Body, Driver<TlsStream<Paced<TcpStream>>>>;
/// What it reads and writes.
type Io = CoalescingWriter<TlsStream<Paced<TcpStream>>>;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum PoolError {
    /// It was not sent: there is no connection.
    #[error(transparent)]
    Unreachable(Arc<Unreachable>),
    /// It was not sent, or kube-apiserver said that it did not look at it.
    #[error("kube-apiserver closed the connection")]
    Untouched(#[source] hyper::Error),
    /// kube-apiserver may have acted on it.
    #[error("kube-apiserver ended the request without an answer")]
    Unanswered(#[source] hyper::Error),
    /// It was not sent: its party uses up what it may.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// It was not sent: the front stops.
    #[error("the server is stopping")]
    Stopping,
}

/// One stream of a connection.
#[derive(Debug)]
struct Lease {
    pool: Arc<Shared>,
    party: Arc<Party>,
    id: Id,
    ending: Ending,
}

/// A stream whose request has no answer yet: given up, it rests.
#[derive(Debug)]
struct Unanswered(Option<Lease>);

impl Pool {
    /// No connections yet. One without streams for `idle` is closed.
    pub(super) fn new(connectors: Connectors, idle: Duration) -> Self {
        let tasks = Tasks::default();
        let _cut = tasks.cut_on_drop();
        let trimmer = Trimmer::new(MANY);
        let trimming = trimmer.clone();
        tasks.spawn(async move { trimming.run().await });
        let (slots, reachable) = (Mutex::new(Slots::new()), AtomicBool::new(true));
        let shared = Arc::new(Shared { connectors, idle, slots, tasks, trimmer, reachable });
        Self { shared, _cut }
    }

    /// Opens connections for that party's upgrades: each has its own.
    pub(super) fn connector(&self, party: &Party) -> &Connector {
        self.shared.connector(party)
    }

    /// Sends the party's request and returns the answer's head; its body streams.
    ///
    /// What nobody looked at is offered to younger connections, and what may be repeated without harm is repeated once:
    /// requests survive kube-apiserver's restart. Dropping the future or the answer's body resets the stream.
    pub(super) async fn send(
        &self,
        party: &Arc<Party>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, PoolError> {
        let harmless = harmless(&request);
        let mut failed = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (lease, refused, Open { mut sender, awaited }) = self.shared.lease(party, failed).await?;
            let id = lease.id;
            let (unanswered, waiting) = (Unanswered(Some(lease)), awaited.begin());
            let sent = sender.try_send_request(request).await;
            drop(waiting);
            let lease = unanswered.answered();
            let mut error = match sent {
                Ok(response) => {
                    if response.status() == StatusCode::UNAUTHORIZED {
                        // Guesses do not pile up as connections.
                        refused.cancel();
                    }
                    let (head, incoming) = response.into_parts();
                    let body = body::begun(body::keep(body::streamed(incoming), lease), PATIENCE).await;
                    return Ok(Response::from_parts(head, body));
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            if unsent.is_some() || sender.is_closed() {
                self.shared.slots().remove(party, id);
            }
            let untouched = unsent.is_some() || is_untouched(error.error());
            let limit = if untouched { ATTEMPTS } else { 2 };
            let again = unsent.or_else(|| Some(Request::from_parts(harmless.clone()?, empty())));
            match again {
                Some(again) if attempts < limit => request = again,
                _ if untouched => return Err(PoolError::Untouched(error.into_error())),
                _ => return Err(PoolError::Unanswered(error.into_error())),
            }
            debug!(error = %error.error(), "A request to kube-apiserver failed and is sent again.");
            failed = Some(id);
        }
    }

    /// Ends all connections.
    pub(super) async fn close(&self) {
        self.shared.tasks.cut();
        self.shared.tasks.end(Duration::ZERO).await;
    }
}

impl Shared {
    fn connector(&self, party: &Party) -> &Connector {
        match party {
            Party::Certificate(_) => &self.connectors.trusted,
            Party::Token(_) | Party::Anonymous(_) => &self.connectors.plain,
        }
    }

    /// A stream on a connection of the party's younger than `than`, once that is open; and what to tell if its token is refused.
    async fn lease(
        self: &Arc<Self>,
        party: &Arc<Party>,
        than: Option<Id>,
    ) -> Result<(Lease, CancellationToken, Open), PoolError> {
        let (lease, Handle { mut phase, refused, .. }) = self.take(party, than)?;
        let phase = phase.wait_for(|phase| !matches!(phase, Phase::Opening)).await.map(|phase| phase.clone());
        match phase {
            Ok(Phase::Open(open)) => Ok((lease, refused, open)),
            Ok(Phase::Failed(why)) => Err(PoolError::Unreachable(why)),
            Ok(Phase::Opening) | Err(_) => Err(PoolError::Stopping),
        }
    }

    fn take(self: &Arc<Self>, party: &Arc<Party>, than: Option<Id>) -> Result<(Lease, Handle), Exhausted> {
        let mut slots = self.slots();
        let (id, handle) = match slots.take(party, than)? {
            Some(taken) => taken,
            None => {
                let rank = slots.next_rank(party)?;
                if let Some(empty) = slots.make_room()? {
                    empty.displaced.cancel();
                }
                let (phase, receiver) = watch::channel(Phase::Opening);
                let handle = Handle {
                    phase: receiver,
                    emptied: Arc::default(),
                    refused: CancellationToken::new(),
                    displaced: CancellationToken::new(),
                };
                let id = slots.open(party, rank, handle.clone());
                self.tasks.spawn(self.clone().tend(party.clone(), (id, rank), phase, handle.clone()));
                (id, handle)
            }
        };
        Ok((Lease { pool: self.clone(), party: party.clone(), id, ending: Ending::Used }, handle))
    }

    /// A connection's life, from opening it until it takes no more streams.
    async fn tend(
        self: Arc<Self>,
        party: Arc<Party>,
        (id, rank): (Id, Rank),
        phase: watch::Sender<Phase>,
        handle: Handle,
    ) {
        let _held = self.trimmer.hold();
        let Handle { phase: _, emptied, refused, displaced } = handle;
        let opened = self.open(self.connector(&party), rank).await;
        self.report(opened.as_ref().err());
        let connection = match opened {
            Ok((open, connection)) => {
                phase.send_replace(Phase::Open(open));
                connection
            }
            Err(why) => {
                self.slots().remove(&party, id);
                phase.send_replace(Phase::Failed(Arc::new(why)));
                return;
            }
        };

        let mut connection = pin!(connection);
        let (mut idle, mut close_at) = (self.idle(&party, rank), None);
        loop {
            let closing = async {
                match close_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = &mut connection => {
                    debug!(?id, ?ended, "A connection to kube-apiserver takes no more requests.");
                    break;
                }
                () = emptied.notified() => close_at = Some(Instant::now() + idle),
                () = refused.cancelled(), if !idle.is_zero() => {
                    idle = Duration::ZERO;
                    close_at = Some(Instant::now());
                }
                () = displaced.cancelled() => return,
                () = closing => {
                    if self.slots().retire(&party, id) {
                        return;
                    }
                    close_at = None;
                }
            }
        }
        self.slots().remove(&party, id);
    }

    async fn open(&self, connector: &Connector, rank: Rank) -> Result<(Open, Driven), Unreachable> {
        let stream = connector.http2().await?;
        let awaited = stream.get_ref().0.awaited();
        let io = CoalescingWriter::new(stream, Backpressure::default());
        let (sender, connection) = http2::Builder::new(io.driver(self.tasks.clone()))
            .initial_stream_window_size(rank.stream_window())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|source| Unreachable::Http { address: connector.address(), source })?;
        Ok((Open { sender, awaited }, connection))
    }

    fn idle(&self, party: &Party, rank: Rank) -> Duration {
        match party {
            Party::Certificate(_) | Party::Token(_) if rank.is_first() => self.idle,
            // The burst is over, or its one client may be gone.
            Party::Certificate(_) | Party::Token(_) | Party::Anonymous(_) => self.idle.min(SHORT_IDLE),
        }
    }

    /// Logs when kube-apiserver goes or comes back; a restart is one line of each, however many requests it meets.
    fn report(&self, failure: Option<&Unreachable>) {
        let was_reachable = self.reachable.swap(failure.is_none(), Ordering::Relaxed);
        match failure {
            Some(why) if was_reachable => {
                let error: &dyn std::error::Error = why;
                warn!(error, "kube-apiserver cannot be reached; clients are told to try again.");
            }
            None if !was_reachable => {
                info!(address = %self.connectors.plain.address(), "kube-apiserver can be reached again.");
            }
            _ => {}
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots<Handle>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(handle) = self.pool.slots().give_back(&self.party, self.id, self.ending) {
            handle.emptied.notify_one();
        }
    }
}

impl Unanswered {
    /// There is an answer, or there will be none.
    fn answered(mut self) -> Lease {
        self.0.take().expect("it is there until it is answered or dropped")
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(mut lease) = self.0.take() else { return };
        lease.pool.slots().rest(&lease.party);
        lease.ending = Ending::Rested;
        let tasks = lease.pool.tasks.clone();
        tasks.spawn(async move {
            tokio::time::sleep(REST).await;
            drop(lease);
        });
    }
}

/// The head of a request that changes nothing and has no body.
fn harmless(request: &Request<Body>) -> Option<request::Parts> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    (reads && request.body().is_end_stream()).then(|| {
        let mut again = Request::new(());
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.version_mut() = request.version();
        *again.headers_mut() = request.headers().clone();
        again.into_parts().0
    })
}

/// Whether kube-apiserver said that it did not look at the request: its GOAWAY crossed it, or it had no room.
fn is_untouched(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    error.filter(|error| error.is_remote()).is_some_and(|error| match error.reason() {
        Some(h2::Reason::NO_ERROR) => error.is_go_away(),
        Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
        _ => false,
    })
}

const _: () = assert!(LIMIT < 80, "kube-apiserver allows 100 streams, and those reset here end there a little later");

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures_util::future::join_all;
    use k3s_http::full;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
        time::pause,
    };

    use super::*;
    use crate::testing::{ApiServer, Ca, acceptor, connector, soon};

    fn jane() -> Arc<Party> {
        Arc::new(Party::Certificate("jane".to_owned()))
    }

    fn pool(address: SocketAddr, server_ca: &Ca, idle: Duration) -> Pool {
        let [trusted, plain] = [(); 2].map(|()| connector(address, server_ca, None));
        Pool::new(Connectors { trusted, plain }, idle)
    }

    async fn get(pool: &Pool, path: &str) -> Response<Body> {
        let request = Request::get(format!("https://kubernetes{path}")).version(http::Version::HTTP_2);
        soon(pool.send(&jane(), request.body(empty()).unwrap())).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_closed_when_its_last_stream_has_ended_and_no_other_came() {
        let (server_ca, request_header_ca) = (Ca::new("server-ca"), Ca::new("request-header-ca"));
        let api = ApiServer::start(&server_ca, &request_header_ca).await;
        let pool = pool(api.address, &server_ca, Duration::ZERO);
        let watch = get(&pool, "/watch").await;
        drop(get(&pool, "/api").await);
        api.connected(1).await;
        drop(watch);
        api.connected(0).await;
        assert_eq!(get(&pool, "/api").await.status(), 200, "on a new one");
        assert_eq!(api.requests_by_connection(), [2, 1]);
    }

    #[tokio::test]
    async fn what_a_burst_opened_is_closed_soon_after_it() {
        let (server_ca, request_header_ca) = (Ca::new("server-ca"), Ca::new("request-header-ca"));
        let api = ApiServer::start(&server_ca, &request_header_ca).await;
        let pool = pool(api.address, &server_ca, Duration::from_secs(3600));
        let watches = join_all((0..3 * LIMIT).map(|_| get(&pool, "/watch"))).await;
        api.connected(3).await;
        pause();
        drop(watches);
        api.connected(1).await;
    }

    #[tokio::test]
    async fn a_partys_further_connections_may_hold_less() {
        let (server_ca, request_header_ca) = (Ca::new("server-ca"), Ca::new("request-header-ca"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = pool(listener.local_addr().unwrap(), &server_ca, Duration::ZERO);
        let (acceptor, (seen, mut windows)) = (acceptor(&server_ca, &request_header_ca), mpsc::channel(3));
        let listening = tokio::spawn(async move {
            let mut silent = Vec::new();
            loop {
                let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                let mut settings = vec![0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len() + 9];
                stream.read_exact(&mut settings).await.unwrap();
                let mut settings = vec![0; usize::from(settings[settings.len() - 7])];
                stream.read_exact(&mut settings).await.unwrap();
                // SETTINGS_INITIAL_WINDOW_SIZE
                let window = settings.chunks(6).find(|setting| setting[..2] == [0, 4]).unwrap();
                seen.send(u32::from_be_bytes(window[2..].try_into().unwrap())).await.unwrap();
                silent.push(stream);
            }
        });
        let mut told = Vec::new();
        tokio::select! {
            _ = join_all((0..3 * LIMIT).map(|_| get(&pool, "/hang"))) => unreachable!("nobody answers"),
            () = async { while told.len() < 3 { told.push(windows.recv().await.unwrap()) } } => {}
        }
        told.sort_unstable();
        assert_eq!(told, [65_536, 65_536, 262_144]);
        listening.abort();
    }

    #[tokio::test]
    async fn connections_end_with_their_pool() {
        let (server_ca, request_header_ca) = (Ca::new("server-ca"), Ca::new("request-header-ca"));
        let api = ApiServer::start(&server_ca, &request_header_ca).await;
        let pool = pool(api.address, &server_ca, Duration::from_secs(3600));
        let _watch = get(&pool, "/watch").await;
        api.connected(1).await;
        drop(pool);
        api.connected(0).await;
    }

    #[tokio::test]
    async fn what_a_goodbye_crossed_was_not_acted_on() {
        let (server_ca, request_header_ca) = (Ca::new("server-ca"), Ca::new("request-header-ca"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = pool(listener.local_addr().unwrap(), &server_ca, Duration::ZERO);
        let acceptor = acceptor(&server_ca, &request_header_ca);
        let leaving = tokio::spawn(async move {
            loop {
                let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                // SETTINGS, and GOAWAY with NO_ERROR that counts no stream as seen.
                stream.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        let request = Request::post("https://kubernetes/api").version(http::Version::HTTP_2);
        let error = soon(pool.send(&jane(), request.body(full("once")).unwrap())).await.unwrap_err();
        assert!(matches!(error, PoolError::Untouched(_)), "{error:?}");
        leaving.abort();
    }
}
