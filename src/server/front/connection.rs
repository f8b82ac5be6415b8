//! One client's connection: handshake, requests, drain.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k3s_listener::{Peer, Verification};
use k3s_pki::{ClientCa, Rejection};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    abuse::Abuse,
    body::{self, Body},
    gateway::Gateway,
    gathered::Gathered,
    status::Status,
    tasks::Tasks,
};

/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's headers on HTTP/1.1, the time before they begin included; kube-apiserver's limit.
const REQUEST_HEADERS: Duration = Duration::from_secs(32);
/// Without requests, a connection ends after this: as kube-apiserver's.
const IDLE: Duration = Duration::from_secs(90);
/// For a client that is sent away to hear it.
const GOAWAY: Duration = Duration::from_secs(1);
/// All headers of a request, bytes.
const HEADERS: u32 = 128 << 10;
/// Streams of one connection; kube-apiserver's limit.
const STREAMS: u32 = 100;
/// What a client may send on a stream ahead of kube-apiserver's reading, bytes.
const STREAM_WINDOW: u32 = 32 << 10;
/// What of an answer waits here for a client to read it, bytes.
const SEND_BUFFER: usize = 32 << 10;

/// What all connections share.
pub(super) struct Context {
    pub(super) acceptor: TlsAcceptor,
    /// `None` while the server starts.
    pub(super) gateway: Option<Gateway>,
    /// What clients' certificates are verified by; `None` while the server starts, and nobody is anybody.
    pub(super) client_ca: Option<Arc<ClientCa>>,
    pub(super) verification: Verification,
    pub(super) tasks: Tasks,
    pub(super) shutdown: CancellationToken,
}

/// What the requests of one connection share.
struct Client {
    peer: Peer,
    /// Requests whose answers have not ended.
    running: watch::Sender<usize>,
    /// Asks for what runs to end and nothing new to begin.
    drain: CancellationToken,
    abuse: Arc<Abuse>,
}

/// A request until its answer has ended.
struct Running(Arc<Client>);

/// Serves the connection until it ends; on shutdown, until the requests on it have ended.
pub(super) async fn serve(stream: TcpStream, address: SocketAddr, context: Arc<Context>) {
    let Some(stream) = handshake(stream, address, &context).await else { return };
    let session = stream.get_ref().1;
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let certificate = match &context.client_ca {
        Some(client_ca) => context.verification.verify(client_ca, chain).await,
        None => Err(Rejection::None),
    };
    let client = Arc::new(Client {
        peer: Peer::new(address, certificate),
        running: watch::Sender::new(0),
        drain: context.shutdown.child_token(),
        abuse: Abuse::new(),
    });

    let service = {
        let (context, client) = (context.clone(), client.clone());
        // Boxed: the task of a watch is as large as this future, and outlives it by hours.
        service_fn(move |request| Box::pin(answer(request, context.clone(), Running::begin(&client))))
    };
    let ended = if is_http2 {
        let connection = Gathered::new(stream).drive(|io| {
            http2::Builder::new(context.tasks.clone())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(STREAMS * STREAM_WINDOW)
                .max_concurrent_streams(STREAMS)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(HEADERS)
                .serve_connection(TokioIo::new(io), service)
        });
        let mut connection = pin!(connection);
        tokio::select! {
            ended = drive(connection.as_mut(), |turns| turns.get_mut().connection().graceful_shutdown(), &client) => ended,
            () = client.abuse.exceeded() => {
                debug!(%address, "A client that gave up too many requests is sent away.");
                // It is given up whether it hears that or not.
                let _ = tokio::time::timeout(GOAWAY, connection.enhance_your_calm()).await;
                return;
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_HEADERS)
            .max_buf_size(HEADERS as usize)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        drive(pin!(connection), http1::UpgradeableConnection::graceful_shutdown, &client).await
    };
    if let Err(error) = ended {
        debug!(%address, %error, "A connection broke off.");
    }
}

async fn handshake(stream: TcpStream, address: SocketAddr, context: &Context) -> Option<TlsStream<TcpStream>> {
    if let Err(error) = configure(&stream) {
        debug!(%address, %error, "A client was gone at once.");
        return None;
    }
    let handshake = tokio::time::timeout(HANDSHAKE, context.acceptor.accept(stream));
    match context.shutdown.run_until_cancelled(handshake).await? {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => debug!(%address, %error, "A TLS handshake failed."),
        Err(_) => debug!(%address, "A client did not finish its TLS handshake in time."),
    }
    None
}

async fn answer(
    request: Request<Incoming>,
    context: Arc<Context>,
    running: Running,
) -> Result<Response<Body>, Infallible> {
    let (version, unanswered) = (request.version(), running.0.abuse.begin());
    let mut response = match &context.gateway {
        Some(gateway) => gateway.answer(request, &running.0.peer, &context.tasks).await,
        None => Status::unavailable("starting").into(),
    };
    unanswered.answered();
    // Strangers get one request a connection: what HTTP/2 makes cheap for them is dear for us (CVE-2023-44487). As in
    // kube-apiserver, which cannot tell them from others on our connections to it.
    // On HTTP/1.1 too: a certificate is verified once for a connection, so the next try needs a new one.
    if response.status() == StatusCode::UNAUTHORIZED {
        match version {
            Version::HTTP_2 => running.0.drain.cancel(),
            _ => drop(response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"))),
        }
    }
    Ok(response.map(|answer| body::keep(answer, running)))
}

/// Runs the connection, and drains it when it is idle or asked to.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    begin_drain: impl Fn(Pin<&mut C>),
    client: &Client,
) -> C::Output {
    let mut running = client.running.subscribe();
    let mut draining = false;
    loop {
        let idle = *running.borrow_and_update() == 0;
        tokio::select! {
            ended = &mut connection => return ended,
            () = client.drain.cancelled(), if !draining => draining = true,
            () = tokio::time::sleep(IDLE), if idle && !draining => draining = true,
            Ok(()) = running.changed() => continue,
        }
        begin_drain(connection.as_mut());
    }
}

/// Small writes go out at once, and a client that vanished without a word is noticed after two minutes: its watches end.
fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

impl Running {
    fn begin(client: &Arc<Client>) -> Self {
        client.running.send_modify(|running| *running += 1);
        Self(client.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}
