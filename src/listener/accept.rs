//! Taking connections in.
//!
//! A connection is handed on once its client has said something. Until then it is a descriptor, a place and a small task, and whoever
//! serves the others does not hear of it.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    select,
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    connections::{Connections, Place},
    handshake::HANDSHAKE,
    repeated::Repeated,
    thread::OwnThread,
};

/// After the system had no descriptor or memory for a connection, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A connection whose client has said something.
#[derive(Debug)]
pub struct Arrival {
    /// Where it is from.
    pub address: SocketAddr,
    /// Of no runtime: who serves it may have another one.
    pub(crate) stream: std::net::TcpStream,
    pub(crate) place: Place,
    /// When its client is to have finished the handshake.
    pub(crate) deadline: Instant,
}

/// Hands on each connection whose client says something, until `shutdown`. `serve` only begins: it does not wait.
///
/// When many connections have ended, the memory that they took is given back to the system.
pub async fn accept(
    listener: &TcpListener,
    connections: &Connections,
    shutdown: &CancellationToken,
    serve: impl FnMut(Arrival),
) {
    select! {
        () = take_in(listener, connections, shutdown, serve) => {}
        () = connections.give_memory_back() => {}
    }
}

/// [`accept`] on a thread of its own, so that a flood of connections takes no turns from what is served. `serve` is called there.
pub async fn accept_on_thread(
    listener: TcpListener,
    connections: Connections,
    shutdown: CancellationToken,
    serve: impl FnMut(Arrival) + Send + 'static,
) {
    match OwnThread::with_listener(&listener) {
        Ok((thread, moved)) => {
            // Else this thread would be woken for each connection, too.
            drop(listener);
            thread.run(async move { accept(&moved, &connections, &shutdown, serve).await }).await;
        }
        Err(error) => {
            warn!(%error, "New connections get no thread of their own: a flood of them holds up others.");
            accept(&listener, &connections, &shutdown, serve).await;
        }
    }
}

async fn take_in(
    listener: &TcpListener,
    connections: &Connections,
    shutdown: &CancellationToken,
    mut serve: impl FnMut(Arrival),
) {
    let (mut failures, mut pause, mut resting_until) = (Repeated::default(), PAUSES.0, None);
    let mut silent = JoinSet::new();
    loop {
        let accepting = async {
            if let Some(until) = resting_until {
                sleep_until(until).await;
            }
            listener.accept().await
        };
        let accepted = select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(heard) = silent.join_next() => {
                if let Ok(Some(arrival)) = heard {
                    serve(arrival);
                }
                continue;
            }
            accepted = accepting => accepted,
        };
        resting_until = None;
        match accepted {
            Ok((stream, address)) => {
                pause = PAUSES.0;
                silent.spawn(until_heard(stream, address, connections.enter(address.ip())));
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                let now = Instant::now();
                if let Some(failures) = failures.count(now) {
                    let connections = connections.count();
                    warn!(%error, failures, connections, "Cannot accept connections; trying again.");
                }
                resting_until = Some(now + pause);
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
    silent.shutdown().await;
}

/// The connection, once its client has said something; `None` if it does not, or another one needs the place.
async fn until_heard(stream: TcpStream, address: SocketAddr, place: Place) -> Option<Arrival> {
    let (deadline, mut first) = (Instant::now() + HANDSHAKE, [0]);
    select! {
        heard = timeout_at(deadline, stream.peek(&mut first)) => {
            heard.ok()?.ok().filter(|count| *count > 0)?;
        }
        () = place.displaced() => {
            // There is nothing to be answered, and the system would keep what is left of an orderly end for a minute.
            let _ = stream.set_zero_linger();
            return None;
        }
    }
    Some(Arrival { address, stream: stream.into_std().ok()?, place, deadline })
}

/// Whether the failure is that connection's alone.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net,
    };

    use tokio::{sync::mpsc, task::yield_now, time::timeout};

    use super::*;
    use crate::limits::Limits;

    const LIMITS: Limits =
        Limits { strangers: 2, strangers_of_source: 2, authenticated: 1, authenticated_of_source: 1 };

    /// A test that would hang fails.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn connect(address: SocketAddr) -> net::TcpStream {
        let stream = net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_handed_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Connections::new(LIMITS));
        let (arrivals, mut arrived) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let (ending, held) = (shutdown.clone(), connections.clone());
        let accepting = tokio::spawn(async move {
            accept(&listener, &held, &ending, |arrival| arrivals.send(arrival.address).unwrap()).await;
        });
        let (mut silent, mut eager) = (connect(address), connect(address));
        for client in [&mut eager, &mut silent] {
            client.write_all(b"hello").unwrap();
            let first = timeout(PATIENCE, arrived.recv()).await.unwrap();
            assert_eq!(first, Some(client.local_addr().unwrap()));
        }
        shutdown.cancel();
        accepting.await.unwrap();
        assert_eq!(connections.count(), 0);
    }

    #[tokio::test]
    async fn a_flood_is_dealt_with_while_whoever_serves_is_busy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Connections::new(LIMITS));
        let shutdown = CancellationToken::new();
        let accepting = tokio::spawn(accept_on_thread(listener, connections, shutdown.clone(), drop));
        yield_now().await;
        // From here on nothing else runs on this thread.
        let mut flood = Vec::from_iter((0..20).map(|_| connect(address)));
        let gone = flood[0].read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(gone, Err(io::ErrorKind::ConnectionReset));
        shutdown.cancel();
        accepting.await.unwrap();
    }
}
