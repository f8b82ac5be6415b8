//! Bytes that tell where in a stream they belong, so that none is lost, doubled or out of its order unseen.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{Condvar, LazyLock, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// What streams repeat. Its length has no divisor in common with that of any buffer.
static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(65_521).collect()
});

/// How much is sent, or read, at once.
const CHUNK: usize = 64 << 10;
/// A sender that got rid of nothing for so long waits for its reader.
const STALLED: Duration = Duration::from_millis(200);

/// How far a sender is.
#[derive(Debug, Default)]
pub struct Progress {
    sent: Mutex<u64>,
    changed: Condvar,
}

/// Sends `length` bytes and ends the stream.
///
/// # Errors
/// The other end does not take them in time.
pub fn send(mut stream: &TcpStream, length: u64, progress: &Progress) -> Result<()> {
    let mut sent = 0;
    while sent < length {
        let next = block_at(sent);
        let next = &next[..next.len().min((length - sent) as usize)];
        stream.write_all(next).with_context(|| format!("Cannot send after {sent} of {length} bytes"))?;
        sent += next.len() as u64;
        progress.set(sent);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Receives what [`send`] sends, and its end.
///
/// # Errors
/// They are others, or do not come in time.
pub fn receive(stream: &TcpStream, length: u64) -> Result<()> {
    receive_up_to(stream, 0, length)?;
    ensure_end(stream, length)
}

/// The same, but before each `burst` bytes it waits until the sender is stuck: until all that is between them is full.
///
/// # Errors
/// They are others, or do not come in time.
pub fn receive_in_bursts(stream: &TcpStream, length: u64, burst: u64, progress: &Progress) -> Result<()> {
    let mut received = 0;
    while received < length {
        progress.wait_until_stalled();
        let next = length.min(received + burst);
        receive_up_to(stream, received, next)?;
        received = next;
    }
    ensure_end(stream, length)
}

fn receive_up_to(mut stream: &TcpStream, mut received: u64, length: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while received < length {
        let room = buffer.len().min((length - received) as usize);
        let count = stream.read(&mut buffer[..room]).with_context(|| format!("It broke off after {received} bytes"))?;
        ensure!(count > 0, "It ended after {received} of {length} bytes");
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let expected = block_at(received);
            let count = expected.len().min(rest.len());
            ensure!(rest[..count] == expected[..count], "Wrong bytes after {received}");
            rest = &rest[count..];
            received += count as u64;
        }
    }
    Ok(())
}

fn ensure_end(mut stream: &TcpStream, length: u64) -> Result<()> {
    ensure!(stream.read(&mut [0])? == 0, "It goes on after {length} bytes");
    Ok(())
}

/// The bytes from that position to the end of a block.
fn block_at(position: u64) -> &'static [u8] {
    &BLOCK[(position % BLOCK.len() as u64) as usize..]
}

impl Progress {
    fn set(&self, sent: u64) {
        *self.sent.lock().expect("no holder panics") = sent;
        self.changed.notify_all();
    }

    fn wait_until_stalled(&self) {
        let mut sent = self.sent.lock().expect("no holder panics");
        loop {
            let (now, wait) = self.changed.wait_timeout(sent, STALLED).expect("no holder panics");
            if wait.timed_out() {
                return;
            }
            sent = now;
        }
    }
}
