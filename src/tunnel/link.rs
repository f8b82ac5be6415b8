//! A session between the task that drives its websocket and the streams that use its connections.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::io::ReadBuf;

use crate::{
    dialect::Dialect,
    message::{ConnectionId, Ending, Target},
    room,
    session::{Event, Role, Session, Unread, Violation, Written},
    stream::TunnelStream,
};

/// What happens to connections when their websocket ends; remotedialer's words.
const DISCONNECT: &str = "tunnel disconnect";

/// One session, shared.
#[derive(Debug)]
pub(crate) struct Link(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    /// The websocket is gone.
    ended: bool,
    /// Wakes the task that drives the websocket.
    driver: Option<Waker>,
    waiting: HashMap<ConnectionId, Waiting>,
}

/// Who waits for a connection.
#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A connection that the server wants.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) target: Target,
    pub(crate) stream: TunnelStream,
}

impl Link {
    pub(crate) fn new(role: Role, dialect: Dialect, name: String) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            session: Session::new(role, dialect, name, room::of_a_connection()),
            ended: false,
            driver: None,
            waiting: HashMap::new(),
        })))
    }

    pub(crate) fn role(&self) -> Role {
        self.lock().session.role()
    }

    /// A connection to `target`; `None` if the websocket is gone.
    pub(crate) fn connect(self: &Arc<Self>, target: Target) -> Option<TunnelStream> {
        let mut inner = self.lock();
        if inner.ended {
            return None;
        }
        let connection = inner.session.connect(target);
        inner.wake_driver();
        Some(TunnelStream::new(self.clone(), connection))
    }

    pub(crate) fn poll_read(
        &self,
        connection: ConnectionId,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let count = match inner.session.unread(connection) {
            Unread::Bytes(bytes) => {
                let count = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..count]);
                count
            }
            Unread::Ended(Ending::Eof) => return Poll::Ready(Ok(())),
            Unread::Ended(Ending::Error(text)) => return Poll::Ready(Err(broken(text))),
            Unread::Nothing => {
                inner.waiting.entry(connection).or_default().reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        inner.session.consume(connection, count);
        inner.wake_driver();
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_write(
        &self,
        connection: ConnectionId,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        match inner.session.write(connection, bytes) {
            Written::Taken(count) => {
                inner.wake_driver();
                Poll::Ready(Ok(count))
            }
            Written::Blocked => {
                inner.waiting.entry(connection).or_default().writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Written::Ended(Ending::Eof) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Written::Ended(Ending::Error(text)) => Poll::Ready(Err(broken(&text))),
        }
    }

    /// Nothing more is written on the connection.
    pub(crate) fn close_write(&self, connection: ConnectionId) {
        let mut inner = self.lock();
        inner.session.close_write(connection);
        inner.wake_writer(connection);
        inner.wake_driver();
    }

    /// Ends the connection, for both sides and both directions.
    pub(crate) fn close(&self, connection: ConnectionId, ending: Ending) {
        let mut inner = self.lock();
        inner.session.close(connection, ending);
        inner.wake(connection);
        inner.wake_driver();
    }

    /// The connection's stream is gone.
    pub(crate) fn release(&self, connection: ConnectionId) {
        let mut inner = self.lock();
        inner.session.release(connection);
        inner.waiting.remove(&connection);
        inner.wake_driver();
    }

    /// Takes a websocket message.
    pub(crate) fn receive(self: &Arc<Self>, bytes: Bytes) -> Result<Option<Asked>, Violation> {
        let mut inner = self.lock();
        match inner.session.receive(bytes)? {
            Some(Event::Asked { connection, target }) => {
                return Ok(Some(Asked { target, stream: TunnelStream::new(self.clone(), connection) }));
            }
            Some(Event::Readable(connection)) => inner.wake_reader(connection),
            Some(Event::Writable(connection)) => inner.wake_writer(connection),
            Some(Event::Ended(connections)) => connections.into_iter().for_each(|connection| inner.wake(connection)),
            None => {}
        }
        Ok(None)
    }

    /// The next websocket message to send. When there is none, `cx` is woken for the next.
    pub(crate) fn poll_transmit(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut inner = self.lock();
        let Some(transmit) = inner.session.transmit() else {
            inner.driver = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if let Some(connection) = transmit.writable {
            inner.wake_writer(connection);
        }
        Poll::Ready(transmit.bytes)
    }

    /// Queues the list of connections.
    pub(crate) fn sync(&self) {
        self.lock().session.sync();
    }

    /// The websocket is gone, and with it every connection.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        inner.session.end(&Ending::Error(DISCONNECT.to_owned()));
        for waiting in inner.waiting.values_mut() {
            [waiting.reader.take(), waiting.writer.take()].into_iter().flatten().for_each(Waker::wake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no method of a session panics")
    }
}

impl Inner {
    fn wake_driver(&mut self) {
        if self.session.wants_to_send()
            && let Some(driver) = self.driver.take()
        {
            driver.wake();
        }
    }

    fn wake_reader(&mut self, connection: ConnectionId) {
        let reader = self.waiting.get_mut(&connection).and_then(|waiting| waiting.reader.take());
        reader.into_iter().for_each(Waker::wake);
    }

    fn wake_writer(&mut self, connection: ConnectionId) {
        let writer = self.waiting.get_mut(&connection).and_then(|waiting| waiting.writer.take());
        writer.into_iter().for_each(Waker::wake);
    }

    fn wake(&mut self, connection: ConnectionId) {
        self.wake_reader(connection);
        self.wake_writer(connection);
    }
}

/// What the peer said of a connection's end, as an error of it.
fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}
