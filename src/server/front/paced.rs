//! A connection that is read seldom while it is busy.
//!
//! kube-apiserver writes a list in pieces of 4 KiB, and an event of a thousand watches in a thousand pieces. Read as they come, each
//! costs two system calls, a thread's wake-up, and a write to the client, which is several times what its bytes cost.

use std::{
    future::Future,
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// The time in which [`READS`] are free. The runtime's timers know nothing shorter.
const PERIOD: Duration = Duration::from_millis(1);
/// Reads that do not wait for each other: a small answer comes in two.
const READS: u32 = 4;
/// What one read takes at most, bytes.
const BUFFER: usize = 64 << 10;

/// Reads `S` at most a few times a millisecond, and then all that is there. Writes are `S`' own.
pub(super) struct Paced<S> {
    stream: S,
    buffer: Box<[u8]>,
    /// What of the buffer was read and has not been asked for.
    waiting: Range<usize>,
    pace: Pace,
    rest: Option<Pin<Box<Sleep>>>,
}

/// How often was read lately.
#[derive(Debug, Clone, Copy)]
struct Pace {
    since: Instant,
    reads: u32,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S) -> Self {
        let pace = Pace { since: Instant::now(), reads: 0 };
        Self { stream, buffer: vec![0; BUFFER].into(), waiting: 0..0, pace, rest: None }
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Reads into the empty buffer, which stays empty at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let mut space = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
        self.waiting = 0..space.filled().len();
        // After a full buffer there is more already.
        if space.remaining() > 0 {
            self.rest = self.pace.read(Instant::now()).map(|until| Box::pin(sleep_until(until)));
        }
        Poll::Ready(Ok(()))
    }
}

impl Pace {
    /// Counts a read; after one too many, tells how long to rest.
    fn read(&mut self, now: Instant) -> Option<Instant> {
        if now >= self.since + PERIOD {
            *self = Self { since: now, reads: 0 };
        }
        self.reads += 1;
        (self.reads >= READS).then(|| self.since + PERIOD)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            ready!(self.poll_fill(cx))?;
        }
        let count = self.waiting.len().min(out.remaining());
        let start = self.waiting.start;
        out.put_slice(&self.buffer[start..start + count]);
        self.waiting.start += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_reads_are_free_and_then_what_comes_is_put_together() {
        let (mut there, here) = duplex(2 * BUFFER);
        let mut here = Paced::new(here);
        let start = Instant::now();
        let mut read = [0; 16];
        for _ in 0..READS {
            there.write_all(b"x").await.unwrap();
            assert_eq!(here.read(&mut read).await.unwrap(), 1);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        there.write_all(b"y").await.unwrap();
        there.write_all(b"z").await.unwrap();
        assert_eq!(here.read(&mut read).await.unwrap(), 2);
        assert!(start.elapsed() >= PERIOD);
    }

    #[tokio::test(start_paused = true)]
    async fn much_is_read_without_a_rest_and_so_is_what_comes_slowly() {
        let (mut there, here) = duplex(8 * BUFFER);
        let mut here = Paced::new(here);
        let start = Instant::now();
        there.write_all(&vec![7; 8 * BUFFER]).await.unwrap();
        here.read_exact(&mut vec![0; 8 * BUFFER]).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..2 * READS {
            tokio::time::advance(PERIOD).await;
            let asked = Instant::now();
            there.write_all(b"event").await.unwrap();
            here.read_exact(&mut [0; 5]).await.unwrap();
            assert_eq!(asked.elapsed(), Duration::ZERO);
        }
        drop(there);
        assert_eq!(here.read(&mut [0]).await.unwrap(), 0, "the end is passed on");
    }
}
