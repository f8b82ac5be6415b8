//! One client's HTTP/2 connection.
//!
//! Its calls are polled by the connection's own task, not by tasks of theirs: nearly all of them look something up and
//! are done, so that handing them to another thread, and their answers back, would be most of the work. What keeps the
//! threads busy is that clients have many connections.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::Service;

/// HTTP/2 windows and buffers, in bytes: small, since a node has a hundred connections, most of them idle.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 64 << 10;
/// Streams per connection: etcd does not limit them, and a watch holds one for ever.
const STREAMS: u32 = 1 << 20;
/// How long a connection may take to end its streams at shutdown.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves a connection until the client closes it, or until the shutdown has ended its calls.
pub(super) async fn serve(service: Service, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let shutdown = service.shutdown.clone();
    let begun = Begun::default();
    let connection = http2::Builder::new(begun.clone())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            }),
        );
    tokio::pin!(connection);
    let mut calls = Calls::new();
    let result = tokio::select! {
        result = poll_fn(|cx| poll(connection.as_mut(), &begun, &mut calls, cx)) => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(DRAIN, poll_fn(|cx| poll(connection.as_mut(), &begun, &mut calls, cx))).await {
                Ok(result) => result,
                // A client that does not read gets no GOAWAY.
                Err(_) => return debug!("A client did not close its connection in time."),
            }
        }
    };
    if let Err(error) = result {
        debug!(%error, "A client's connection broke.");
    }
}

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;
type Calls = FuturesUnordered<Call>;

/// Calls that the connection has begun while it was polled.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<Call>>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().expect("moving calls does not panic")
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begun {
    fn execute(&self, call: F) {
        self.lock().push(Box::pin(call));
    }
}

/// Goes on with the connection and its calls.
fn poll<C: Future>(
    mut connection: Pin<&mut C>,
    begun: &Begun,
    calls: &mut Calls,
    cx: &mut Context<'_>,
) -> Poll<C::Output> {
    loop {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        calls.extend(begun.lock().drain(..));
        let mut answered = false;
        while let Poll::Ready(Some(())) = calls.poll_next_unpin(cx) {
            answered = true;
        }
        if !answered {
            return Poll::Pending;
        }
        // The answers are with the connection; it sends them.
    }
}
