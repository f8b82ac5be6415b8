//! From a TCP connection to one on which requests come.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use k3s_pki::{ClientCa, Rejection};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    select,
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{
    accept::Arrival, connections::Place, pace::Pace, peer::Peer, requests::Requests, stream::Stream,
    verification::Verification,
};

/// For the TLS handshake, from the time at which the client connects.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the preface of HTTP/2, as in Go's servers.
const FIRST: Duration = Duration::from_secs(10);
/// With which a client of HTTP/2 begins.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Shakes hands. Clones share the order in which certificates are verified, and how many handshakes there may be.
#[derive(Clone)]
pub struct Handshakes {
    tls: Arc<ServerConfig>,
    verification: Verification,
    pace: Pace,
}

/// A connection on which requests come.
#[derive(Debug)]
pub struct Inbound {
    /// Who is at its other end.
    pub peer: Peer,
    /// What was agreed on.
    pub protocol: Protocol,
    /// The requests on it.
    pub requests: Arc<Requests>,
    /// What is read and written.
    pub stream: Stream,
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why no requests come.
#[derive(Debug, thiserror::Error)]
pub enum NoConnection {
    /// The client was gone at once.
    #[error("the client was gone at once")]
    Gone(#[source] io::Error),
    /// TLS failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// It took too long.
    #[error("the client did not finish its handshake in time")]
    Timeout,
    /// HTTP/2 was agreed on, and something else came.
    #[error("the client does not speak HTTP/2, on which it agreed")]
    Preface,
    /// Another one needed the place.
    #[error("another client needed the place")]
    Displaced,
}

impl Handshakes {
    /// Under this policy and certificate.
    pub fn new(tls: ServerConfig) -> Self {
        Self { tls: Arc::new(tls), verification: Verification::new(), pace: Pace::new() }
    }

    /// Shakes hands, and verifies what the client shows by `client_ca`; without one, nobody is anybody.
    ///
    /// # Errors
    ///
    /// The client does not come as far as its first request, or has to leave before.
    pub async fn shake(&self, arrival: Arrival, client_ca: Option<&Arc<ClientCa>>) -> Result<Inbound, NoConnection> {
        let Arrival { address, stream, place, deadline } = arrival;
        let (stream, place) = (TcpStream::from_std(stream).map_err(NoConnection::Gone)?, Arc::new(place));
        select! {
            inbound = self.shake_on((stream, address), deadline, place.clone(), client_ca) => inbound,
            () = place.displaced() => Err(NoConnection::Displaced),
        }
    }

    async fn shake_on(
        &self,
        (stream, address): (TcpStream, SocketAddr),
        deadline: Instant,
        place: Arc<Place>,
        client_ca: Option<&Arc<ClientCa>>,
    ) -> Result<Inbound, NoConnection> {
        configure(&stream).map_err(NoConnection::Gone)?;
        let tls = timeout_at(deadline, self.shake_tls(stream, address, &place)).await;
        let tls = tls.map_err(|_| NoConnection::Timeout)?.map_err(NoConnection::Tls)?;
        let session = tls.get_ref().1;
        let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
        let chain = session.peer_certificates().unwrap_or_default().to_vec();
        let certificate = match client_ca {
            Some(client_ca) if !chain.is_empty() => {
                // One source has one in the line, however many it connects with.
                let _turn = place.turn().await;
                self.verification.verify(client_ca, chain).await
            }
            _ => Err(Rejection::None),
        };
        let requests = Requests::new();
        let mut stream = Stream::new(tls, requests.clone(), place.clone());
        if protocol == Protocol::Http2 {
            // Until it comes, the connection costs no state of HTTP/2.
            let mut preface = [0; PREFACE.len()];
            let read = timeout(FIRST, stream.read_exact(&mut preface)).await;
            read.map_err(|_| NoConnection::Timeout)?.map_err(NoConnection::Gone)?;
            if preface != *PREFACE {
                return Err(NoConnection::Preface);
            }
            stream.put_back_preface();
        }
        Ok(Inbound { peer: Peer::new(address, certificate, place), protocol, requests, stream })
    }
}

impl Handshakes {
    /// Answers to the ClientHellos of one source are given one by one, so many a second, and whatever else is ready comes in between.
    async fn shake_tls(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        place: &Place,
    ) -> io::Result<TlsStream<TcpStream>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let accepting = {
            let _turn = place.turn().await;
            if !place.is_local() {
                self.pace.wait(address.ip(), place.is_of_known_source()).await;
            }
            let accepting = hello.into_stream(self.tls.clone());
            yield_now().await;
            accepting
        };
        accepting.await
    }
}

/// Small writes go out at once, and a client that vanished without a word is noticed after two minutes: its watches end.
fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}
