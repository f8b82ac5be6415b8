//! A connection through a tunnel, as a byte stream.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf};

use crate::{
    link::Link,
    message::{ConnectionId, Ending},
};

/// What is read at once when streams are joined, bytes.
const CHUNK: usize = 32 << 10;

/// One end of a connection through a tunnel.
///
/// The protocol knows no half-closed connections: a shutdown ends both directions. What had come by then can still be read,
/// and what was written is still delivered. Dropping it does the same.
#[derive(Debug)]
pub struct TunnelStream {
    link: Arc<Link>,
    connection: ConnectionId,
}

impl TunnelStream {
    pub(crate) fn new(link: Arc<Link>, connection: ConnectionId) -> Self {
        Self { link, connection }
    }

    /// Ends the connection for a reason that the other side is told.
    pub(crate) fn fail(self, why: String) {
        self.link.close(self.connection, Ending::Error(why));
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.link.poll_read(self.connection, cx, buffer)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.link.poll_write(self.connection, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.close(self.connection, Ending::Eof);
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.link.release(self.connection);
    }
}

/// Carries bytes both ways until one side ends or breaks off, and then ends the other after what it still had to get.
///
/// As tunnels know no half-closed connections, neither does what leads into one: the end of one direction is the end.
pub async fn splice<A, B>(a: A, b: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((from_a, mut to_a), (from_b, mut to_b)) = (tokio::io::split(a), tokio::io::split(b));
    let (mut from_a, mut from_b) = (BufReader::with_capacity(CHUNK, from_a), BufReader::with_capacity(CHUNK, from_b));
    tokio::select! {
        ended = tokio::io::copy_buf(&mut from_a, &mut to_b) => {
            ended?;
            to_b.shutdown().await
        }
        ended = tokio::io::copy_buf(&mut from_b, &mut to_a) => {
            ended?;
            to_a.shutdown().await
        }
    }
}
