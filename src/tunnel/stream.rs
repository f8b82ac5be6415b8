//! A connection through a tunnel, as a byte stream.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    link::Link,
    message::{ConnectionId, Ending},
};

/// One end of a connection through a tunnel.
///
/// A shutdown ends what is written, after all that was. What the other side sends can be read on until that ends as well; a peer
/// that does not know half-closed connections ends it when it hears of the shutdown ([`Dialect`](crate::Dialect)).
/// Dropping it ends both directions; what was written is still delivered.
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
        self.link.close_write(self.connection);
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.link.release(self.connection);
    }
}
