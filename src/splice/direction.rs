//! One direction of a splice.
//!
//! ```text
//! carrying ──the source ends or breaks──▶ ending ──the sink is closed──▶ over
//!     └──the sink takes no more──▶ discarding ──the source ends or breaks──▲
//! ```

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf};

/// What is read at once, bytes: a tunnel's largest message.
const CHUNK: usize = 32 << 10;

/// Bytes on their way from a source to a sink. Its futures may be dropped at any await and made anew: nothing is lost.
#[derive(Debug)]
pub(crate) struct Direction<R, W> {
    source: BufReader<ReadHalf<R>>,
    sink: WriteHalf<W>,
    state: State,
    /// The sink may hold back bytes that it took.
    unflushed: bool,
    source_is_gone: bool,
    /// The first failure of either.
    pub(crate) error: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Carrying,
    Ending,
    Discarding,
    Over,
}

impl<R: AsyncRead, W: AsyncWrite> Direction<R, W> {
    pub(crate) fn new(source: ReadHalf<R>, sink: WriteHalf<W>) -> Self {
        Self {
            source: BufReader::with_capacity(CHUNK, source),
            sink,
            state: State::Carrying,
            unflushed: false,
            source_is_gone: false,
            error: None,
        }
    }

    /// Whether the source failed in a way that leaves nobody to send to either.
    pub(crate) fn source_is_gone(&self) -> bool {
        self.source_is_gone
    }

    /// Carries bytes until the source has ended and the sink was closed, or until the sink takes no more.
    pub(crate) async fn carry(&mut self) {
        loop {
            match self.state {
                State::Carrying => self.carry_chunk().await,
                State::Ending => {
                    let closed = self.sink.shutdown().await;
                    self.state = State::Over;
                    self.note(closed);
                }
                State::Discarding | State::Over => return,
            }
        }
    }

    /// Carries bytes, discards what the sink does not take, and returns when the source has ended.
    pub(crate) async fn run(&mut self) {
        self.carry().await;
        while self.state == State::Discarding {
            match self.source.fill_buf().await {
                Ok([]) | Err(_) => self.state = State::Over,
                Ok(bytes) => {
                    let count = bytes.len();
                    self.source.consume(count);
                }
            }
        }
    }

    async fn carry_chunk(&mut self) {
        if self.unflushed {
            let flushed = self.sink.flush().await;
            self.unflushed = false;
            return self.note(flushed);
        }
        let bytes = match self.source.fill_buf().await {
            Ok([]) => return self.state = State::Ending,
            Ok(bytes) => bytes,
            Err(error) => {
                // TLS speaks of an unexpected end where the peer closed without saying so. It may still read.
                self.source_is_gone = error.kind() != io::ErrorKind::UnexpectedEof;
                self.error.get_or_insert(error);
                return self.state = State::Ending;
            }
        };
        let written = match self.sink.write(bytes).await {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                self.source.consume(count);
                self.unflushed = true;
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.note(written);
    }

    /// Keeps a failure of the sink's, after which it takes no more.
    fn note(&mut self, outcome: io::Result<()>) {
        let Err(error) = outcome else { return };
        self.error.get_or_insert(error);
        if self.state == State::Carrying {
            self.state = State::Discarding;
        }
    }
}
