//! What children say: read line by line, given its priority, and passed on.
//!
//! ```text
//! pipe ─▶ Follower (one a process) ─▶ queue ─▶ pump (one a program and target) ─▶ journal | stderr
//!                                  └▶ queue ─▶ pump                             ─▶ log_file
//! ```
//!
//! A child never waits for a slow reader: what does not fit into a queue is dropped and counted in the log itself.

mod file;
mod journald;
mod lines;
mod priority;
mod quotes;
mod stderr;

use std::{
    io::{self, PipeReader},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use tokio::{net::unix::pipe, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::program::Program;
use lines::Lines;
use priority::Priority;
use quotes::{Piece, Quotes};

/// Chunks, each what one read gave: half a MiB at most.
const QUEUE: usize = 64;
const READ: usize = 8 * 1024;
/// How long the last lines may take when the supervisor ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Where children's lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the journal, a stream a component.
    Journal {
        /// journald's stream socket.
        socket: PathBuf,
    },
    /// To our standard error, each line after its component's name.
    Stderr,
}

impl Target {
    /// The journal where our own standard error goes there, as `JOURNAL_STREAM` tells (systemd.exec(5)).
    pub fn detect() -> Self {
        let is_stream = |value: String| {
            let stat = nix::sys::stat::fstat(io::stderr().as_fd()).ok()?;
            (value == format!("{}:{}", stat.st_dev, stat.st_ino)).then_some(())
        };
        match std::env::var("JOURNAL_STREAM").ok().and_then(is_stream) {
            Some(()) => Self::Journal { socket: journald::SOCKET.into() },
            None => Self::Stderr,
        }
    }
}

/// The way out for one program's lines, over all its processes.
#[derive(Debug)]
pub(crate) struct Output {
    sinks: Vec<Sink>,
    pumps: Vec<JoinHandle<()>>,
    quotes_after: &'static [&'static str],
}

#[derive(Debug, Clone)]
struct Sink {
    format: Format,
    queue: mpsc::Sender<Vec<u8>>,
    dropped: u64,
}

#[derive(Debug, Clone)]
enum Format {
    /// `<N>line`, as journald and systemd's stderr read it.
    Journal,
    /// `component| line`.
    Prefixed(String),
    /// `line`.
    Plain,
}

impl Output {
    pub(crate) fn new(program: &Program, target: &Target) -> Self {
        let mut output = Self { sinks: Vec::new(), pumps: Vec::new(), quotes_after: program.quotes_after };
        match target {
            Target::Journal { socket } => {
                let queue = output.add(Format::Journal);
                output.pumps.push(tokio::spawn(journald::pump(program.name.clone(), socket.clone(), queue)));
            }
            Target::Stderr => {
                let queue = output.add(Format::Prefixed(program.name.clone()));
                output.pumps.push(tokio::spawn(stderr::pump(queue)));
            }
        }
        if let Some(path) = &program.log_file {
            let queue = output.add(Format::Plain);
            output.pumps.push(tokio::spawn(file::pump(path.clone(), queue)));
        }
        output
    }

    fn add(&mut self, format: Format) -> mpsc::Receiver<Vec<u8>> {
        let (queue, received) = mpsc::channel(QUEUE);
        self.sinks.push(Sink { format, queue, dropped: 0 });
        received
    }

    /// Passes on what a process writes into the other end of `pipe`, and tells `on_error` of its errors as they come.
    pub(crate) fn follow(
        &self,
        pipe: PipeReader,
        on_error: impl Fn(String) + Send + Sync + 'static,
    ) -> io::Result<Follower> {
        let pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))?;
        let exited = CancellationToken::new();
        let reading = Reading {
            pipe,
            lines: Lines::default(),
            quotes: Quotes::after(self.quotes_after),
            words: LastWords::default(),
            sinks: self.sinks.clone(),
            on_error: Box::new(on_error),
        };
        Ok(Follower { task: tokio::spawn(reading.run(exited.clone())), exited })
    }

    /// Waits until what was read is written, within reason.
    pub(crate) async fn close(self) {
        drop(self.sinks);
        for mut pump in self.pumps {
            if timeout(FLUSH, &mut pump).await.is_err() {
                pump.abort();
            }
        }
    }
}

/// One process' reader.
#[derive(Debug)]
pub(crate) struct Follower {
    task: JoinHandle<Option<String>>,
    exited: CancellationToken,
}

impl Follower {
    /// To be called once the process has ended: reads what is left, and not for what its own children may write later.
    /// The answer is its last error, or else its last line.
    pub(crate) async fn finish(self) -> Option<String> {
        self.exited.cancel();
        self.task.await.unwrap_or_else(|error| {
            warn!(%error, "Reading a component's output failed.");
            None
        })
    }
}

struct Reading {
    pipe: pipe::Receiver,
    lines: Lines,
    quotes: Quotes,
    words: LastWords,
    sinks: Vec<Sink>,
    on_error: Box<dyn Fn(String) + Send + Sync>,
}

impl Reading {
    async fn run(mut self, exited: CancellationToken) -> Option<String> {
        loop {
            let ready = tokio::select! {
                ready = self.pipe.readable() => ready,
                () = exited.cancelled() => break,
            };
            if ready.is_err() || self.read().is_none() {
                break;
            }
        }
        // A full pipe and a bit: somebody else who holds the other end may go on writing.
        for _ in 0..(2 * 64 * 1024 / READ) {
            if self.read().is_none_or(|length| length == 0) {
                break;
            }
        }
        let mut batch = Batch::new(&self.sinks);
        self.lines.finish(|line, piece| batch.push(line, piece, &mut self.quotes, &self.sinks, &mut self.words));
        batch.send(&mut self.sinks);
        self.words.line()
    }

    /// How much there was; `None` at the end.
    fn read(&mut self) -> Option<usize> {
        let mut buffer = [0; READ];
        match self.pipe.try_read(&mut buffer) {
            Ok(0) => None,
            Ok(length) => {
                let mut batch = Batch::new(&self.sinks);
                self.lines.push(&buffer[..length], |line, piece| {
                    batch.push(line, piece, &mut self.quotes, &self.sinks, &mut self.words);
                });
                if batch.has_error
                    && let Some(words) = self.words.line()
                {
                    (self.on_error)(words);
                }
                batch.send(&mut self.sinks);
                Some(length)
            }
            Err(error) => (error.kind() == io::ErrorKind::WouldBlock).then_some(0),
        }
    }
}

/// What one read gives each sink.
struct Batch {
    texts: Vec<Vec<u8>>,
    lines: u64,
    has_error: bool,
}

impl Batch {
    fn new(sinks: &[Sink]) -> Self {
        Self { texts: vec![Vec::new(); sinks.len()], lines: 0, has_error: false }
    }

    fn push(&mut self, line: &[u8], piece: Piece, quotes: &mut Quotes, sinks: &[Sink], words: &mut LastWords) {
        let Some(line) = quotes.leave_out(line, piece) else { return };
        let priority = Priority::of(&line);
        words.scan(&line, priority);
        self.has_error |= priority <= Priority::Error;
        self.lines += 1;
        for (sink, text) in sinks.iter().zip(&mut self.texts) {
            sink.format.write(priority, &line, text);
        }
    }

    fn send(self, sinks: &mut [Sink]) {
        for (sink, text) in sinks.iter_mut().zip(self.texts) {
            if !text.is_empty() {
                sink.send(text, self.lines);
            }
        }
    }
}

impl Sink {
    fn send(&mut self, mut text: Vec<u8>, lines: u64) {
        let Ok(place) = self.queue.try_reserve() else {
            self.dropped += lines;
            return;
        };
        if self.dropped > 0 {
            let mut first = Vec::new();
            let note = format!("{} lines are missing here: the log could not keep up", self.dropped);
            self.format.write(Priority::Warning, note.as_bytes(), &mut first);
            first.append(&mut text);
            text = first;
            self.dropped = 0;
        }
        place.send(text);
    }
}

impl Format {
    fn write(&self, priority: Priority, line: &[u8], text: &mut Vec<u8>) {
        match self {
            Self::Journal => text.extend_from_slice(&[b'<', b'0' + priority as u8, b'>']),
            Self::Prefixed(name) => {
                text.extend_from_slice(name.as_bytes());
                text.extend_from_slice(b"| ");
            }
            Self::Plain => {}
        }
        text.extend_from_slice(line);
        text.push(b'\n');
    }
}

/// What a process said that explains its end best: its last error, with the lines after it as long as they end in a colon, or else its last
/// line.
#[derive(Debug, Default)]
struct LastWords {
    line: Vec<u8>,
    is_error: bool,
}

impl LastWords {
    const LONGEST: usize = 512;

    fn scan(&mut self, line: &[u8], priority: Priority) {
        let is_error = priority <= Priority::Error;
        if line.trim_ascii().is_empty() {
            return;
        }
        let goes_on = self.is_error && !is_error;
        if !goes_on {
            self.is_error = is_error;
            self.line.clear();
        } else if self.line.ends_with(b":") {
            self.line.push(b' ');
        } else {
            return;
        }
        let room = Self::LONGEST.saturating_sub(self.line.len());
        let line = line.trim_ascii();
        self.line.extend_from_slice(&line[..line.len().min(room)]);
    }

    fn line(&self) -> Option<String> {
        (!self.line.is_empty()).then(|| String::from_utf8_lossy(&self.line).trim().to_owned())
    }
}
