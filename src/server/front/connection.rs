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

use http::{Request, StatusCode};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{body, gateway::Gateway, peer::Peer, tasks::Tasks};

/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's headers on HTTP/1.1, the time before they begin included; kube-apiserver's limit.
const REQUEST_HEADERS: Duration = Duration::from_secs(32);
/// Without requests, a connection ends after this: as kube-apiserver's.
const IDLE: Duration = Duration::from_secs(90);
/// All headers of a request, bytes.
const HEADERS: usize = 128 << 10;
/// Streams of one connection; kube-apiserver's limit.
const STREAMS: u32 = 100;
/// What a client may send on a stream ahead of kube-apiserver's reading, bytes.
const STREAM_WINDOW: u32 = 32 << 10;
/// What of an answer waits here for a client to read it, bytes.
const SEND_BUFFER: usize = 32 << 10;

/// Serves the connection until it ends; on `shutdown`, until the requests on it have ended.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    gateway: Arc<Gateway>,
    tasks: Tasks,
    shutdown: CancellationToken,
) {
    if let Err(error) = configure(&stream) {
        return debug!(%address, %error, "A client was gone at once.");
    }
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
    let stream = match shutdown.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => return debug!(%address, %error, "A TLS handshake failed."),
        Some(Err(_)) => return debug!(%address, "A client did not finish its TLS handshake in time."),
        None => return,
    };

    let session = stream.get_ref().1;
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let peer = Arc::new(Peer::new(address, chain));

    // Strangers get one request a connection: what HTTP/2 makes cheap for them is dear for us (CVE-2023-44487). As in
    // kube-apiserver, which cannot tell them from others on our connections to it.
    let drain = shutdown.child_token();
    let refused = drain.clone();
    let requests = Requests(Arc::new(watch::Sender::new(0)));
    let active = requests.0.subscribe();
    let service_tasks = tasks.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (gateway, peer, tasks) = (gateway.clone(), peer.clone(), service_tasks.clone());
        let running = requests.begin();
        let drain = refused.clone();
        // Boxed: the task of a watch is as large as this future, and outlives it by hours.
        Box::pin(async move {
            let response = gateway.answer(request, &peer, &tasks).await;
            if is_http2 && response.status() == StatusCode::UNAUTHORIZED {
                drain.cancel();
            }
            Ok::<_, Infallible>(response.map(|answer| body::keep(answer, running)))
        })
    });

    let io = TokioIo::new(stream);
    let ended = if is_http2 {
        let connection = http2::Builder::new(tasks)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAMS * STREAM_WINDOW)
            .max_concurrent_streams(STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADERS as u32)
            .serve_connection(io, service);
        drive(connection, http2::Connection::graceful_shutdown, active, drain).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_HEADERS)
            .max_buf_size(HEADERS)
            .serve_connection(io, service)
            .with_upgrades();
        drive(connection, http1::UpgradeableConnection::graceful_shutdown, active, drain).await
    };
    if let Err(error) = ended {
        debug!(%address, %error, "A connection broke off.");
    }
}

/// Runs the connection, and drains it when it is idle or `drain` says so: what runs ends, nothing new begins.
async fn drive<C: Future>(
    connection: C,
    begin_drain: impl Fn(Pin<&mut C>),
    mut active: watch::Receiver<usize>,
    drain: CancellationToken,
) -> C::Output {
    let mut connection = pin!(connection);
    let mut draining = false;
    loop {
        let idle = *active.borrow_and_update() == 0;
        tokio::select! {
            ended = &mut connection => return ended,
            () = drain.cancelled(), if !draining => draining = true,
            () = tokio::time::sleep(IDLE), if idle && !draining => draining = true,
            Ok(()) = active.changed() => continue,
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

/// Counts the requests whose answers have not ended.
#[derive(Debug, Clone)]
struct Requests(Arc<watch::Sender<usize>>);

impl Requests {
    fn begin(&self) -> Running {
        self.0.send_modify(|running| *running += 1);
        Running(self.clone())
    }
}

/// A request until its answer has ended.
#[derive(Debug)]
struct Running(Requests);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.send_modify(|running| *running -= 1);
    }
}
