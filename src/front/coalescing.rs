//! A connection whose small writes leave together.
//!
//! An HTTP/2 connection writes frame by frame, and its answers come from as many tasks as it has requests. Each frame alone would be a
//! TLS record and a system call here, and both again at the client.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::{backpressure::Backpressure, tasks::Tasks};

/// What is written before the end of a turn, once it is so much, bytes.
const BUFFER: usize = 64 << 10;

/// GOAWAY with ENHANCE_YOUR_CALM, and no word on which streams were seen.
const ENHANCE_YOUR_CALM: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\x0b";

/// What a connection reads and writes. What it writes leaves at the end of a turn of its [`FlushOnYield`].
pub(super) struct CoalescingWriter<S>(Arc<Mutex<Outbox<S>>>);

/// Drives a connection on a [`CoalescingWriter`] turn by turn.
///
/// A turn begins when all the tasks have run that were ready when it was asked for: what they answer is part of it.
pub(super) struct FlushOnYield<S, C> {
    io: CoalescingWriter<S>,
    connection: Pin<Box<C>>,
    asked_for: bool,
}

/// Spawns what hyper's client hands over. The first of it is the task that drives its connection, and is driven turn by turn.
pub(super) struct Driver<S> {
    tasks: Tasks,
    /// Until the connection has its task.
    io: Arc<Mutex<Option<CoalescingWriter<S>>>>,
}

struct Outbox<S> {
    stream: S,
    /// What has not been written is what follows `written`.
    buffer: Vec<u8>,
    written: usize,
    /// Why writing failed, until the connection hears of it.
    failure: Option<io::Error>,
    backpressure: Backpressure,
}

impl<S> CoalescingWriter<S> {
    /// `backpressure` is told after each turn whether what was written has left.
    pub(super) fn new(stream: S, backpressure: Backpressure) -> Self {
        Self(Arc::new(Mutex::new(Outbox { stream, buffer: Vec::new(), written: 0, failure: None, backpressure })))
    }

    /// Drives what `connect` makes of this.
    pub(super) fn drive<C>(self, connect: impl FnOnce(Self) -> C) -> FlushOnYield<S, C> {
        let io = Self(self.0.clone());
        io.turns(connect(self))
    }

    /// For hyper's client, which spawns what drives the connection that it makes of this.
    pub(super) fn driver(&self, tasks: Tasks) -> Driver<S> {
        Driver { tasks, io: Arc::new(Mutex::new(Some(Self(self.0.clone())))) }
    }

    fn turns<C>(self, connection: C) -> FlushOnYield<S, C> {
        FlushOnYield { io: self, connection: Box::pin(connection), asked_for: false }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S, C> FlushOnYield<S, C> {
    /// What is driven.
    pub(super) fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, C> FlushOnYield<S, C> {
    /// Gives the connection up, and tells the client that it asked for too much (RFC 9113, 7). Returns when the client has heard it: it
    /// would not if the connection were closed while it still sends.
    ///
    /// Between turns all that was written is whole frames.
    pub(super) async fn enhance_your_calm(self: Pin<&mut Self>) -> io::Result<()> {
        let mut io = CoalescingWriter(self.io.0.clone());
        io.outbox().buffer.extend_from_slice(ENHANCE_YOUR_CALM);
        io.shutdown().await?;
        let mut ignored = [0; 4096];
        while io.read(&mut ignored).await? > 0 {}
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin, C: Future> Future for FlushOnYield<S, C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        self.asked_for = !self.asked_for;
        if self.asked_for {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let ended = self.connection.as_mut().poll(cx);
        let mut outbox = self.io.outbox();
        match outbox.poll_write_out(cx) {
            Poll::Pending => outbox.backpressure.block(),
            Poll::Ready(Ok(())) => outbox.backpressure.release(),
            Poll::Ready(Err(error)) => {
                outbox.failure = Some(error);
                outbox.backpressure.release();
                cx.waker().wake_by_ref();
            }
        }
        ended
    }
}

impl<S, F> hyper::rt::Executor<F> for Driver<S>
where
    S: AsyncWrite + Send + Unpin + 'static,
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let io = self.io.lock().unwrap_or_else(PoisonError::into_inner).take();
        match io {
            Some(io) => self.tasks.spawn(io.turns(task)),
            None => self.tasks.spawn(task),
        }
    }
}

impl<S> Clone for Driver<S> {
    fn clone(&self) -> Self {
        Self { tasks: self.tasks.clone(), io: self.io.clone() }
    }
}

impl<S: AsyncWrite + Unpin> Outbox<S> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        // Most connections are silent for most of their life.
        self.buffer = Vec::new();
        self.written = 0;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Err(failure));
        }
        if self.buffer.len() >= BUFFER { self.poll_write_out(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CoalescingWriter<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox();
        match outbox.failure.take() {
            Some(failure) => Poll::Ready(Err(failure)),
            None => Pin::new(&mut outbox.stream).poll_read(cx, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CoalescingWriter<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut outbox = self.outbox();
        ready!(outbox.poll_room(cx))?;
        outbox.buffer.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut outbox = self.outbox();
        ready!(outbox.poll_room(cx))?;
        slices.iter().for_each(|slice| outbox.buffer.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is done now: what is written leaves at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox();
        ready!(outbox.poll_write_out(cx))?;
        Pin::new(&mut outbox.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    /// What was written, a piece for each write; broken after so many, or full.
    struct Pieces {
        seen: Vec<usize>,
        limit: usize,
        is_full: bool,
    }

    impl AsyncWrite for Pieces {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if self.is_full {
                return Poll::Pending;
            }
            if self.seen.len() == self.limit {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            self.seen.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Pieces {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// A turn, and the poll before it that asks for it.
    fn turn<C: Future>(turns: &mut FlushOnYield<Pieces, C>) -> Poll<C::Output> {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut *turns).poll(&mut cx).is_pending());
        Pin::new(turns).poll(&mut cx)
    }

    /// The task's next turn.
    async fn next_turn() {
        let mut waited = false;
        poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// What was written since the last look.
    fn seen<C>(turns: &FlushOnYield<Pieces, C>) -> Vec<usize> {
        std::mem::take(&mut turns.io.outbox().stream.seen)
    }

    #[test]
    fn what_is_written_in_a_turn_leaves_in_one_piece() {
        let io = CoalescingWriter::new(
            Pieces { seen: Vec::new(), limit: usize::MAX, is_full: false },
            Backpressure::default(),
        );
        let mut turns = io.drive(|mut io| async move {
            for _ in 0..3 {
                io.write_all(b"frame").await.unwrap();
                io.flush().await.unwrap();
            }
            next_turn().await;
            io.write_all(&[7; BUFFER]).await.unwrap();
            io.write_all(b"more than is kept").await.unwrap();
            next_turn().await;
            io.write_all(b"the end").await.unwrap();
            io.shutdown().await.unwrap();
        });
        assert!(turn(&mut turns).is_pending());
        assert_eq!(seen(&turns), [15]);
        assert!(turn(&mut turns).is_pending());
        assert_eq!(seen(&turns), [BUFFER, 17]);
        assert!(turn(&mut turns).is_ready());
        assert_eq!(seen(&turns), [7]);
    }

    #[test]
    fn a_connection_hears_that_its_writes_failed() {
        let io = CoalescingWriter::new(Pieces { seen: Vec::new(), limit: 0, is_full: false }, Backpressure::default());
        let mut turns = io.drive(|mut io| async move {
            io.write_all(b"frame").await.unwrap();
            next_turn().await;
            io.read_u8().await.unwrap_err().kind()
        });
        assert!(turn(&mut turns).is_pending());
        assert_eq!(turn(&mut turns), Poll::Ready(io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn nothing_more_is_asked_for_while_what_was_written_does_not_leave() {
        let (backpressure, cx) = (Backpressure::default(), Context::from_waker(Waker::noop()));
        let pieces = Pieces { seen: Vec::new(), limit: usize::MAX, is_full: true };
        let io = CoalescingWriter::new(pieces, backpressure.clone());
        let mut turns = io.drive(|mut io| async move {
            next_turn().await;
            io.write_all(b"frame").await.unwrap();
            std::future::pending::<()>().await;
        });
        for (is_full, is_ready) in [(true, true), (true, false), (true, false), (false, true)] {
            turns.io.outbox().stream.is_full = is_full;
            assert!(turn(&mut turns).is_pending());
            assert_eq!(backpressure.poll_ready(&cx).is_ready(), is_ready);
        }
    }
}
