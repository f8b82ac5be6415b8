//! A connection from which all is read before anything is written to it.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// What is read ahead at most, bytes: more than Linux by default keeps for a sender (4 MiB) and a receiver (6 MiB) together.
const AHEAD: usize = 12 << 20;
/// What is read at once.
const CHUNK: usize = 64 << 10;
/// How long nothing more comes before all counts as read: a peer on another machine sends on once it hears of the room that reading made.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// How long writes wait at most while the peer goes on sending more than is read, and then how long they do not: who interrupts a program
/// that floods a slow line is heard.
pub(crate) const HOLD: Duration = Duration::from_secs(2);

/// A TCP connection, or TLS on one, whose peer may have closed it while its bytes wait for a slow reader.
///
/// A peer that has closed and hears anything more answers by a reset, and its kernel throws away what was not sent yet: the end of a
/// program's output is lost to the ping of whoever reads it slowly. That it has closed shows behind its last byte alone. So as long as
/// bytes of the peer's wait, they are read into memory before any is written to it. A reader that keeps up delays nothing.
#[derive(Debug)]
pub struct ReadFirst<S> {
    stream: S,
    /// What was read and has not been asked for.
    ahead: VecDeque<u8>,
    /// What follows these.
    end: Option<io::Result<()>>,
    /// Waits for `ahead`.
    reader: Option<Waker>,
    hold: Option<Hold>,
    /// When one had waited long enough.
    released: Option<Instant>,
}

/// A write that waits for the peer's bytes.
#[derive(Debug)]
struct Hold {
    since: Instant,
    /// Until nothing has come for [`QUIET`].
    quiet: Option<Pin<Box<Sleep>>>,
}

impl<S> ReadFirst<S> {
    /// Nothing has been read of `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, ahead: VecDeque::new(), end: None, reader: None, hold: None, released: None }
    }
}

impl<S: AsyncRead + Unpin> ReadFirst<S> {
    /// Reads until nothing more comes, unless the reader keeps up.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.end.is_none() && self.released.is_none_or(|at| at.elapsed() >= HOLD) {
            let has_room = self.ahead.len() < AHEAD;
            let read = if has_room { self.poll_read_chunk(cx) } else { Poll::Pending };
            let keeps_up = self.reader.is_some() && self.ahead.is_empty();
            let hold = match read {
                Poll::Ready(()) => {
                    self.reader.take().into_iter().for_each(Waker::wake);
                    let hold = self.hold.get_or_insert_with(Hold::begin);
                    hold.quiet = None;
                    hold
                }
                Poll::Pending if keeps_up || (has_room && self.hold.is_none()) => break,
                Poll::Pending => {
                    let hold = self.hold.get_or_insert_with(Hold::begin);
                    ready!(hold.poll_quiet(cx));
                    if has_room {
                        break;
                    }
                    hold
                }
            };
            if hold.since.elapsed() >= HOLD {
                self.released = Some(Instant::now());
            }
        }
        self.hold = None;
        Poll::Ready(())
    }

    /// Reads what is there into memory.
    fn poll_read_chunk(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = [const { MaybeUninit::uninit() }; CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk)) {
            Ok(()) if chunk.filled().is_empty() => self.end = Some(Ok(())),
            Ok(()) => self.ahead.extend(chunk.filled()),
            Err(error) => self.end = Some(Err(error)),
        }
        Poll::Ready(())
    }
}

impl Hold {
    fn begin() -> Self {
        Self { since: Instant::now(), quiet: None }
    }

    /// Waits [`QUIET`].
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.quiet.get_or_insert_with(|| Box::pin(sleep(QUIET))).as_mut().poll(cx));
        self.quiet = None;
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadFirst<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (waiting, _) = self.ahead.as_slices();
        if !waiting.is_empty() {
            let count = waiting.len().min(buffer.remaining());
            buffer.put_slice(&waiting[..count]);
            self.ahead.drain(..count);
            if self.ahead.is_empty() {
                self.ahead = VecDeque::new();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(end) = &mut self.end {
            // An error is told once.
            return Poll::Ready(std::mem::replace(end, Ok(())));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.reader = read.is_pending().then(|| cx.waker().clone());
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ReadFirst<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_read_ahead(cx));
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS closes with bytes of its own.
        ready!(self.poll_read_ahead(cx));
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
