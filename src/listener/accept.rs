//! Taking connections in.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    select,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    connections::{Connections, Place},
    repeated::Repeated,
};

/// After the system had no descriptor or memory for a connection, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Hands on each connection with its place, until `shutdown`. `serve` only begins: it does not wait.
///
/// When many connections have ended, the memory that they took is given back to the system.
pub async fn accept(
    listener: &TcpListener,
    connections: &Connections,
    shutdown: &CancellationToken,
    serve: impl FnMut(TcpStream, SocketAddr, Place),
) {
    select! {
        () = take_in(listener, connections, shutdown, serve) => {}
        () = connections.give_memory_back() => {}
    }
}

async fn take_in(
    listener: &TcpListener,
    connections: &Connections,
    shutdown: &CancellationToken,
    mut serve: impl FnMut(TcpStream, SocketAddr, Place),
) {
    let (mut failures, mut pause) = (Repeated::default(), PAUSES.0);
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, address)) => {
                pause = PAUSES.0;
                let place = connections.enter(address.ip());
                serve(stream, address, place);
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                if let Some(failures) = failures.count(Instant::now()) {
                    let connections = connections.count();
                    warn!(%error, failures, connections, "Cannot accept connections; trying again.");
                }
                shutdown.run_until_cancelled(sleep(pause)).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// Whether the failure is that connection's alone.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
