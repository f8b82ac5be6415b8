//! Two connections joined to one: what leads from a client to a server in the balancer, the front and the tunnels.
//!
//! Every byte that one end sent before it closed reaches the other, however slowly that reads and whatever becomes of the other direction:
//!
//! - An end that closes for writing (or altogether: nothing tells the difference) is read to its last byte. Then the other end is closed for
//!   writing, and goes on sending for as long as it likes.
//! - An end that takes no more bytes is no reason to stop reading the other: what comes is discarded. A connection that is closed while
//!   bytes wait unread is reset by the kernel, which throws away what the peer has not fetched yet.
//! - [`ReadFirst`] keeps what an end sent before it closed from the answer to what comes too late for it.

mod direction;
mod read_first;

#[cfg(test)]
mod tests;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    time::timeout,
};

use direction::Direction;
pub use read_first::ReadFirst;

/// How long an end may stay after the other has broken off and all that this had sent was handed over. It has been told of the end; what
/// the kernel still holds for it needs the connection. A peer that ignores the end must not hold it for ever.
pub const LINGER: Duration = Duration::from_secs(600);

/// Carries bytes both ways until both ends have closed. Holds 32 KiB for each direction.
///
/// # Errors
/// The first end's failure, after the rest was carried: bytes on the way to it, or that it had not sent yet, are lost.
pub async fn splice<A, B>(a: A, b: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((from_a, to_a), (from_b, to_b)) = (split(a), split(b));
    let (mut forth, mut back) = (Direction::new(from_a, to_b), Direction::new(from_b, to_a));
    tokio::select! {
        () = forth.run() => finish(&mut back, forth.source_is_gone()).await,
        () = back.run() => finish(&mut forth, back.source_is_gone()).await,
    }
    match forth.error.or(back.error) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Carries what is left after the other direction is over; its source is where this one leads to.
async fn finish<R: AsyncRead, W: AsyncWrite>(last: &mut Direction<R, W>, sink_is_gone: bool) {
    if !sink_is_gone {
        last.carry().await;
    }
    // Whoever does not close by then is closed.
    let _ = timeout(LINGER, last.run()).await;
}
