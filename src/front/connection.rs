//! One client's connection: its requests, and what they may cost.

use std::{pin::pin, sync::Arc, time::Duration};

use h2::Reason;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k3s_http::{Body, Status};
use k3s_listener::{Arrival, Handshakes, Inbound, Peer, Protocol, Requests, Running, drive};
use k3s_pki::ClientCa;
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    abuse::Abuse, backpressure::Backpressure, body, coalescing::CoalescingWriter, gateway::Gateway, tasks::Tasks,
};

/// For a client that is sent away to hear it.
const GOAWAY: Duration = Duration::from_secs(1);
/// Between questions on HTTP/2 whether the client is still there, while it asks for nothing.
const PING: Duration = Duration::from_secs(60);
/// For its answer.
const PONG: Duration = Duration::from_secs(20);
/// All headers of a request, bytes.
const HEADERS: u32 = 128 << 10;
/// Streams of one connection; kube-apiserver's limit.
const STREAMS: u32 = 100;
/// Requests of a stranger's connection that are answered at the same time. Others wait, most often for the first answer to a token.
const STRANGERS_REQUESTS: usize = 16;
/// Requests of all strangers that wait for that, each with its headers; those beyond have to come again.
const WAITING: usize = 256;
/// What a client may send on a stream ahead of kube-apiserver's reading, bytes.
const STREAM_WINDOW: u32 = 32 << 10;
/// What of an answer waits here for a client to read it, bytes.
const SEND_BUFFER: usize = 32 << 10;

/// What all connections share.
pub(super) struct Context {
    handshakes: Handshakes,
    /// `None` while the server starts, and nobody is anybody.
    client_ca: Option<Arc<ClientCa>>,
    /// `None` while the server starts.
    pub(super) gateway: Option<Gateway>,
    waiting: Semaphore,
    pub(super) tasks: Tasks,
    pub(super) shutdown: CancellationToken,
}

/// What the requests of one connection share.
struct Client {
    peer: Peer,
    requests: Arc<Requests>,
    /// What is answered at the same time while the client is a stranger.
    answering: Arc<Semaphore>,
    /// Asks for what runs to end and nothing new to begin.
    drain: CancellationToken,
    abuse: Arc<Abuse>,
    /// Of HTTP/2: on HTTP/1.1 there is one answer at a time.
    backpressure: Backpressure,
}

impl Context {
    pub(super) fn new(handshakes: Handshakes, tasks: Tasks, shutdown: CancellationToken) -> Self {
        let waiting = Semaphore::new(WAITING);
        Self { handshakes, client_ca: None, gateway: None, waiting, tasks, shutdown }
    }

    pub(super) fn with_gateway(self, client_ca: Arc<ClientCa>, gateway: Gateway) -> Self {
        Self { client_ca: Some(client_ca), gateway: Some(gateway), ..self }
    }
}

/// Serves the connection until it ends; on shutdown, until the requests on it have ended.
pub(super) async fn serve(arrival: Arrival, context: Arc<Context>) {
    let address = arrival.address;
    let shake = context.handshakes.shake(arrival, context.client_ca.as_ref());
    let Some(shaken) = context.shutdown.run_until_cancelled(shake).await else { return };
    let Inbound { peer, protocol, requests, stream } = match shaken {
        Ok(inbound) => inbound,
        Err(error) => return debug!(%address, error = &error as &dyn std::error::Error, "A client sends no requests."),
    };
    let client = Arc::new(Client {
        peer,
        requests,
        answering: Arc::new(Semaphore::new(STRANGERS_REQUESTS)),
        drain: context.shutdown.child_token(),
        abuse: Abuse::new(),
        backpressure: Backpressure::default(),
    });

    let service = {
        let (context, client) = (context.clone(), client.clone());
        service_fn(move |request: Request<Incoming>| {
            let running = client.begin(request.version());
            // Boxed: the task of a watch is as large as this future, and outlives it by hours.
            Box::pin(answer(request, running, context.clone(), client.clone()))
        })
    };
    let clock = (&client.peer, protocol, &*client.requests);
    let ended = match protocol {
        Protocol::Http2 => {
            let connection = CoalescingWriter::new(stream, client.backpressure.clone()).drive(|io| {
                http2::Builder::new(context.tasks.clone())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(STREAMS * STREAM_WINDOW)
                    .max_concurrent_streams(STREAMS)
                    .max_send_buf_size(SEND_BUFFER)
                    .max_header_list_size(HEADERS)
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(PONG)
                    .serve_connection(TokioIo::new(io), service)
            });
            let mut connection = pin!(connection);
            select! {
                ended = drive(
                    connection.as_mut(),
                    |turns| turns.get_mut().connection().graceful_shutdown(),
                    clock,
                    &client.drain,
                ) => ended,
                () = client.abuse.exceeded() => {
                    debug!(%address, "A client that gave up too many requests is sent away.");
                    // It is given up whether it hears that or not.
                    let _ = timeout(GOAWAY, connection.enhance_your_calm()).await;
                    return;
                }
            }
        }
        Protocol::Http1 => {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                // The connection's clock has it.
                .header_read_timeout(None)
                .max_buf_size(HEADERS as usize)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            drive(pin!(connection), http1::UpgradeableConnection::graceful_shutdown, clock, &client.drain).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%address, %error, "A connection broke off."),
        Err(reason) => debug!(%address, %reason, "A connection was cut off."),
    }
}

async fn answer(
    request: Request<Incoming>,
    running: Result<Running, h2::Error>,
    context: Arc<Context>,
    client: Arc<Client>,
) -> Result<Response<Body>, h2::Error> {
    let (version, running, unanswered) = (request.version(), running?, client.abuse.begin());
    let place = client.place(&context.waiting).await?;
    let mut response = match &context.gateway {
        Some(gateway) => gateway.answer(request, &client.peer, &context.tasks).await,
        None => Status::unavailable("starting").into(),
    };
    unanswered.answered();
    // Strangers get one request a connection: what HTTP/2 makes cheap for them is dear for us (CVE-2023-44487). As in
    // kube-apiserver, which cannot tell them from others on our connections to it.
    // On HTTP/1.1 too: a certificate is verified once for a connection, so the next try needs a new one.
    // Who guesses tokens faster than they are tried out would be told so as fast as it can ask.
    let guesses_on = response.status() == StatusCode::TOO_MANY_REQUESTS && !client.peer.is_authenticated();
    if response.status() == StatusCode::UNAUTHORIZED || guesses_on {
        match version {
            Version::HTTP_2 => client.drain.cancel(),
            _ => drop(response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"))),
        }
    }
    Ok(response.map(|answer| body::deliver(body::keep(answer, place), running, client.backpressure.clone())))
}

impl Client {
    /// A request comes.
    fn begin(&self, version: Version) -> Result<Running, h2::Error> {
        // What a client sends after it was told to go, it may send again elsewhere; one that does not listen gets no more answers.
        if version == Version::HTTP_2 && self.drain.is_cancelled() {
            return Err(Reason::REFUSED_STREAM.into());
        }
        Ok(self.requests.begin())
    }

    /// A place among what is answered at the same time, held until the answer has ended. Clients that have shown credentials need none.
    async fn place(&self, waiting: &Semaphore) -> Result<Option<OwnedSemaphorePermit>, h2::Error> {
        if self.peer.is_authenticated() {
            return Ok(None);
        }
        if let Ok(place) = self.answering.clone().try_acquire_owned() {
            return Ok(Some(place));
        }
        let refused = || h2::Error::from(Reason::REFUSED_STREAM);
        let _waiting = waiting.try_acquire().map_err(|_| refused())?;
        select! {
            place = self.answering.clone().acquire_owned() => Ok(place.ok()),
            () = self.peer.authenticated() => Ok(None),
            () = self.drain.cancelled() => Err(refused()),
        }
    }
}
