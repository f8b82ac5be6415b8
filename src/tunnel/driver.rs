//! The task that moves a session's messages over its websocket.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Bytes, Message, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;

use crate::{
    heartbeat::{Beat, Gone, Heartbeat},
    link::{Asked, Link},
    session::Violation,
};

/// The largest websocket message that is taken: remotedialer's copies send 32 KiB, lists of connections 8 bytes for each.
const MESSAGE: usize = 1 << 20;
/// What is read from the websocket's connection at once, bytes.
const READ: usize = 64 << 10;
/// Bytes that are written together; larger messages go out alone.
const WRITE: usize = 16 << 10;
/// How long a peer is given to read our close frame.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer sent a close frame.
    #[error("the peer closed the tunnel")]
    Closed,
    /// The connection broke.
    #[error("the tunnel's connection broke")]
    Broken(#[source] io::Error),
    /// What came is no websocket's.
    #[error("the peer broke the websocket protocol")]
    Websocket(#[source] Box<tungstenite::Error>),
    /// A message that is not binary.
    #[error("the peer sent a text where only binary messages are expected")]
    Text,
    /// What came breaks the tunnel's protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// Nothing comes or goes.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// A websocket and its session.
#[derive(Debug)]
pub(crate) struct Driver<IO> {
    socket: WebSocketStream<IO>,
    link: Arc<Link>,
    heartbeat: Heartbeat,
    ping: bool,
    unflushed: bool,
}

/// How both sides read and write.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    pub(crate) fn new(socket: WebSocketStream<IO>, link: Arc<Link>) -> Self {
        let heartbeat = Heartbeat::new(link.role(), Instant::now());
        Self { socket, link, heartbeat, ping: false, unflushed: false }
    }

    /// Moves messages until `shutdown` or until the session ends, and hands on each connection that the server asks for. An
    /// error of that ends the session.
    pub(crate) async fn run(
        mut self,
        mut asked: impl FnMut(Asked) -> Result<(), SessionError>,
        shutdown: &CancellationToken,
    ) -> Result<(), SessionError> {
        let ended = loop {
            let due = self.heartbeat.due();
            let step = tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                next = poll_fn(|cx| self.poll_asked(cx)) => next.and_then(&mut asked),
                () = sleep_until(due) => self.beat(),
            };
            if let Err(error) = step {
                break Err(error);
            }
        };
        self.link.end();
        // The peer may be gone: that it hears of the end is a courtesy.
        let _ = timeout(GOODBYE, self.socket.close(None)).await;
        ended
    }

    fn beat(&mut self) -> Result<(), SessionError> {
        match self.heartbeat.beat(Instant::now()) {
            Some(Beat::Ping) => self.ping = true,
            Some(Beat::Sync) => self.link.sync(),
            Some(Beat::Gone(gone)) => return Err(gone.into()),
            None => {}
        }
        Ok(())
    }

    /// Sends and receives until a connection is asked for.
    fn poll_asked(&mut self, cx: &mut Context<'_>) -> Poll<Result<Asked, SessionError>> {
        loop {
            self.send(cx)?;
            let message = ready!(self.socket.poll_next_unpin(cx)).ok_or(SessionError::Closed)??;
            self.heartbeat.heard(Instant::now());
            match message {
                Message::Binary(bytes) => {
                    if let Some(asked) = self.link.receive(bytes)? {
                        return Poll::Ready(Ok(asked));
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => return Poll::Ready(Err(SessionError::Closed)),
                Message::Text(_) | Message::Frame(_) => return Poll::Ready(Err(SessionError::Text)),
            }
        }
    }

    /// Sends what there is, as far as the peer takes it. `cx` is woken when there is more to do.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), SessionError> {
        loop {
            if self.socket.poll_ready_unpin(cx)?.is_pending() {
                self.heartbeat.blocked(Instant::now());
                return Ok(());
            }
            self.heartbeat.unblocked();
            let message = if std::mem::take(&mut self.ping) {
                Message::Ping(Bytes::new())
            } else if let Poll::Ready(bytes) = self.link.poll_transmit(cx) {
                Message::Binary(bytes)
            } else {
                break;
            };
            self.socket.start_send_unpin(message)?;
            self.unflushed = true;
        }
        if self.unflushed {
            self.unflushed = self.socket.poll_flush_unpin(cx)?.is_pending();
            if self.unflushed {
                self.heartbeat.blocked(Instant::now());
            }
        }
        Ok(())
    }
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        self.link.end();
    }
}

impl From<tungstenite::Error> for SessionError {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::error::ProtocolError;
        match error {
            tungstenite::Error::Io(error) => Self::Broken(error),
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::Closed,
            tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                Self::Broken(io::ErrorKind::UnexpectedEof.into())
            }
            error => Self::Websocket(Box::new(error)),
        }
    }
}
