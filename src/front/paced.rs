//! A connection that is read seldom while it is busy.
//!
//! kube-apiserver writes a list in pieces of 4 KiB, and an event of a thousand watches in a thousand pieces. Read as they come, each
//! costs two system calls, a thread's wake-up, and a write to the client, which is several times what its bytes cost. Where one request
//! alone waits, there is nothing that its answer could be put together with, and it is read as it comes.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
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
    space: Space,
    /// What was read and has not been asked for.
    waiting: Bytes,
    pace: Pace,
    rest: Option<Pin<Box<Sleep>>>,
    awaited: Awaited,
}

/// What connections read into, one after the other: most are silent for most of their life, and then hold nothing.
#[derive(Clone)]
pub(super) struct Space(Arc<Mutex<Box<[u8]>>>);

/// The requests that wait for an answer on a connection; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Awaited(Arc<Answers>);

#[derive(Debug, Default)]
struct Answers {
    awaited: AtomicUsize,
    /// A request began while no other waited: its answer is read at once.
    alone: AtomicBool,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiting(Awaited);

/// How often was read lately.
#[derive(Debug, Clone, Copy)]
struct Pace {
    since: Instant,
    reads: u32,
}

impl Space {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(vec![0; BUFFER].into())))
    }
}

impl Awaited {
    /// A request is about to be sent.
    pub(super) fn begin(&self) -> Waiting {
        if self.0.awaited.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.alone.store(true, Ordering::Relaxed);
        }
        Waiting(self.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.awaited.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, space: Space) -> Self {
        let pace = Pace { since: Instant::now(), reads: 0 };
        Self { stream, space, waiting: Bytes::new(), pace, rest: None, awaited: Awaited::default() }
    }

    /// To be told of requests.
    pub(super) fn awaited(&self) -> Awaited {
        self.awaited.clone()
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Reads what is there: into `out`, and what it has no room for waits. Nothing is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.awaited.0.alone.swap(false, Ordering::Relaxed) {
            self.pace = Pace { since: Instant::now(), reads: 0 };
            self.rest = None;
        }
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let mut space = self.space.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
        let (now, later) = space.filled().split_at(space.filled().len().min(out.remaining()));
        out.put_slice(now);
        self.waiting = Bytes::copy_from_slice(later);
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
            return self.poll_fill(cx, out);
        }
        let count = self.waiting.len().min(out.remaining());
        out.put_slice(&self.waiting[..count]);
        self.waiting.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").finish_non_exhaustive()
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
        let mut here = Paced::new(here, Space::new());
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
        let mut here = Paced::new(here, Space::new());
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

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_alone_has_its_answer_read_at_once() {
        let (mut there, here) = duplex(2 * BUFFER);
        let mut here = Paced::new(here, Space::new());
        let awaited = here.awaited();
        let start = Instant::now();
        let mut answer = async |read: u8| {
            for _ in 0..READS {
                there.write_all(&[read]).await.unwrap();
                assert_eq!(here.read_u8().await.unwrap(), read);
            }
        };
        for request in 0..8 {
            let waiting = awaited.begin();
            answer(request).await;
            drop(waiting);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let _others = [awaited.begin(), awaited.begin()];
        answer(8).await;
        let _another = awaited.begin();
        answer(9).await;
        assert!(start.elapsed() >= PERIOD, "their answers are put together");
    }
}
