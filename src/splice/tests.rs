//! Splices between ends that write, read, pause, close and fail in any order.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use proptest::prelude::*;
use socket2::SockRef;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
        duplex,
    },
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use crate::{
    LINGER, ReadFirst,
    read_first::{HOLD, QUIET},
    splice,
};

/// What one end does.
#[derive(Debug, Clone)]
struct Script {
    /// Lengths of what it writes, one after the other.
    writes: Vec<usize>,
    /// What it reads at once.
    read: usize,
    /// Milliseconds between writes, and between reads.
    pauses: (u64, u64),
    /// Bytes that are held between it and the splice, each way.
    buffer: usize,
    /// Its connection fails for the splice after so many bytes.
    fault: Option<Fault>,
    /// When all is written: closes for writing, or altogether.
    closes: Closes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closes {
    ForWriting,
    Altogether,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is read no further.
    Reading(usize),
    /// It takes no more.
    Writing(usize),
}

fn script() -> impl Strategy<Value = Script> {
    let fault = prop_oneof![
        6 => Just(None),
        1 => (0..200_000_usize).prop_map(|after| Some(Fault::Reading(after))),
        1 => (0..200_000_usize).prop_map(|after| Some(Fault::Writing(after))),
    ];
    let closes = prop_oneof![Just(Closes::ForWriting), Just(Closes::Altogether)];
    (
        prop::collection::vec(1..60_000_usize, 0..8),
        500..100_000_usize,
        (0..5_u64, 0..5_u64),
        500..100_000_usize,
        fault,
        closes,
    )
        .prop_map(|(writes, read, pauses, buffer, fault, closes)| Script {
            writes,
            read,
            pauses,
            buffer,
            fault,
            closes,
        })
}

impl Script {
    fn length(&self) -> usize {
        self.writes.iter().sum()
    }

    /// How many bytes have to reach the other end, if that takes all.
    fn carried(&self) -> usize {
        match self.fault {
            Some(Fault::Reading(after)) => self.length().min(after),
            _ => self.length(),
        }
    }

    /// Whether all that comes to this end can be counted.
    fn takes_all(&self) -> bool {
        self.closes == Closes::ForWriting && !matches!(self.fault, Some(Fault::Writing(_)))
    }

    /// Plays it at `stream`, and keeps what it reads.
    async fn play(self, stream: DuplexStream, read: &mut Vec<u8>) {
        let (from, to) = tokio::io::split(stream);
        let closes = self.closes;
        let mut reading = pin!(read_all(from, self.read, self.pauses.1, read));
        let mut writing = pin!(self.write(to));
        tokio::select! {
            () = &mut reading => drop(writing.await),
            to = &mut writing => if closes == Closes::ForWriting {
                reading.await;
                drop(to);
            }
        }
    }

    /// What the other end does not take is discarded: a writer is never stuck.
    async fn write(self, mut to: WriteHalf<DuplexStream>) -> WriteHalf<DuplexStream> {
        let mut position = 0;
        for length in self.writes {
            let bytes = pattern(position..position + length);
            if to.write_all(&bytes).await.is_err() {
                assert!(matches!(self.fault, Some(Fault::Reading(_))), "it is read until it closes");
                break;
            }
            position += length;
            sleep(Duration::from_millis(self.pauses.0)).await;
        }
        let _ = to.shutdown().await;
        to
    }
}

/// Bytes that tell where they belong.
fn pattern(positions: std::ops::Range<usize>) -> Vec<u8> {
    positions.map(|position| (position % 251) as u8).collect()
}

async fn read_all(mut from: ReadHalf<DuplexStream>, at_once: usize, pause: u64, read: &mut Vec<u8>) {
    let mut chunk = vec![0; at_once];
    loop {
        match from.read(&mut chunk).await.expect("pipes have no errors") {
            0 => return,
            count => read.extend_from_slice(&chunk[..count]),
        }
        sleep(Duration::from_millis(pause)).await;
    }
}

/// A connection as the splice has it.
struct Faulty {
    stream: DuplexStream,
    fault: Option<Fault>,
}

impl Faulty {
    fn broken() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
    }
}

impl AsyncRead for Faulty {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(Fault::Reading(left)) = self.fault else { return Pin::new(&mut self.stream).poll_read(cx, buffer) };
        if left == 0 {
            return Poll::Ready(Err(Self::broken()));
        }
        let mut part = vec![0; buffer.remaining().min(left)];
        let mut part = ReadBuf::new(&mut part);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut part);
        let count = part.filled().len();
        buffer.put_slice(part.filled());
        self.fault = Some(Fault::Reading(left - count));
        read
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(Fault::Writing(left)) = self.fault else { return Pin::new(&mut self.stream).poll_write(cx, bytes) };
        if left == 0 {
            return Poll::Ready(Err(Self::broken()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, &bytes[..bytes.len().min(left)]);
        if let Poll::Ready(Ok(count)) = &written {
            self.fault = Some(Fault::Writing(left - count));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Plays both scripts at the ends of a splice, and returns what each end read.
async fn played(a: Script, b: Script, read_first: bool) -> (Vec<u8>, Vec<u8>) {
    let ((a_end, a_here), (b_end, b_here)) = (duplex(a.buffer), duplex(b.buffer));
    let (a_here, b_here) = (Faulty { stream: a_here, fault: a.fault }, Faulty { stream: b_here, fault: b.fault });
    let splicing = async {
        if read_first {
            splice(ReadFirst::new(a_here), ReadFirst::new(b_here)).await
        } else {
            splice(a_here, b_here).await
        }
    };
    let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
    let _ = tokio::join!(splicing, a.play(a_end, &mut from_b), b.play(b_end, &mut from_a));
    (from_a, from_b)
}

/// Whether all that `from` sent came to `to`, or as much as either could carry.
fn check(from: &Script, to: &Script, read: &[u8]) -> Result<(), TestCaseError> {
    prop_assert!(read == pattern(0..read.len()), "in order");
    if to.takes_all() {
        prop_assert_eq!(read.len(), from.carried());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// However either end writes, reads, pauses, closes or fails: what one sent before that reaches the other.
    #[test]
    fn every_byte_arrives(a in script(), b in script(), read_first: bool) {
        let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let playing = async { timeout(Duration::from_secs(100_000), played(a.clone(), b.clone(), read_first)).await };
        let (from_a, from_b) = runtime.block_on(playing).expect("nobody is stuck");
        check(&a, &b, &from_a)?;
        check(&b, &a, &from_b)?;
    }
}

/// A TCP connection from both of its sides, which holds about so many bytes of those that the near side has not read.
async fn connection(held: u32) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpSocket::new_v4().unwrap();
    near.set_recv_buffer_size(held).unwrap();
    let near = near.connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Reads `at_once` bytes every millisecond, and sends a byte after each.
async fn read_and_ping(mut stream: TcpStream, at_once: usize) -> Vec<u8> {
    let (mut read, mut chunk) = (Vec::new(), vec![0; at_once]);
    while let count @ 1.. = stream.read(&mut chunk).await.unwrap() {
        read.extend_from_slice(&chunk[..count]);
        stream.write_all(b"!").await.unwrap();
        sleep(Duration::from_millis(1)).await;
    }
    read
}

/// `kubectl exec POD -- cat FILE`: the program has ended, and kubectl has sent a ping since, long before it has read all.
#[tokio::test]
async fn what_was_sent_before_an_end_was_reset_arrives() {
    let ((kubectl, front), (upstream, mut server)) = (connection(4096).await, connection(200_000).await);
    SockRef::from(&front).set_send_buffer_size(4096).unwrap();
    let sent = pattern(0..150_000);
    server.write_all(&sent).await.unwrap();
    while upstream.peek(&mut vec![0; 150_000]).await.unwrap() < sent.len() {
        yield_now().await;
    }
    drop(server);
    let splicing = tokio::spawn(splice(front, upstream));
    let read = read_and_ping(kubectl, 4096).await;
    assert!(read == sent, "{} of {}", read.len(), sent.len());
    splicing.await.unwrap().unwrap_err();
}

/// The same, while the end of it still waits in the server's kernel: the ping would have that thrown away.
#[tokio::test]
async fn what_a_closed_end_has_still_to_send_is_read_before_it_is_written_to() {
    for length in [2_000_000, 10_000_000] {
        let ((kubectl, front), (upstream, mut server)) = (connection(60_000).await, connection(60_000).await);
        SockRef::from(&front).set_send_buffer_size(60_000).unwrap();
        let sent = pattern(0..length);
        let sending = async {
            server.write_all(&sent).await.unwrap();
            drop(server);
        };
        let splicing = tokio::spawn(splice(front, ReadFirst::new(upstream)));
        let ((), read) = tokio::join!(sending, read_and_ping(kubectl, length / 100));
        assert!(read == sent, "{} of {}", read.len(), sent.len());
        splicing.await.unwrap().unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_whose_other_is_gone_is_not_held_for_ever() {
    let ((a, a_here), (mut b, b_here)) = (duplex(64), duplex(64));
    let began = Instant::now();
    let splicing = tokio::spawn(splice(Faulty { stream: a_here, fault: Some(Fault::Reading(0)) }, b_here));
    assert_eq!(b.read(&mut [0]).await.unwrap(), 0, "it is told");
    splicing.await.unwrap().unwrap_err();
    assert_eq!(began.elapsed().as_secs(), LINGER.as_secs());
    drop((a, b));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_closed_for_writing_is_answered_for_as_long_as_it_takes() {
    let ((mut a, a_here), (mut b, b_here)) = (duplex(64), duplex(64));
    let splicing = tokio::spawn(splice(a_here, b_here));
    a.shutdown().await.unwrap();
    assert_eq!(b.read(&mut [0]).await.unwrap(), 0);
    sleep(10 * LINGER).await;
    b.write_all(b"late").await.unwrap();
    drop(b);
    let mut read = String::new();
    a.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "late");
    splicing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_slowly_is_heard_while_the_other_goes_on_sending() {
    for (rest, delay) in [(Duration::ZERO, 2 * QUIET), (Duration::from_millis(20), HOLD + 2 * QUIET)] {
        let ((mut a, a_here), (b, b_here)) = (duplex(1000), duplex(1000));
        let (mut from_b, mut to_b) = tokio::io::split(b);
        let splicing = tokio::spawn(splice(a_here, ReadFirst::new(b_here)));
        let sending = tokio::spawn(async move {
            while to_b.write_all(&[7; 100]).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        for _ in 0..100 {
            a.read_exact(&mut [0; 50]).await.unwrap();
            sleep(rest).await;
        }
        let asked = Instant::now();
        a.write_all(b"!").await.unwrap();
        let (mut heard, mut chunk) = ([0], [0; 50]);
        let read = async {
            loop {
                a.read_exact(&mut chunk).await.unwrap();
                sleep(rest).await;
            }
        };
        tokio::select! {
            heard = from_b.read_exact(&mut heard) => drop(heard.unwrap()),
            () = read => {}
        }
        assert!(asked.elapsed() < delay, "{:?}", asked.elapsed());
        sending.abort();
        splicing.abort();
    }
}
