//! A thread for the front alone.

use k3s_listener::OwnThread;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Front,
    listener::{Accepting, serve},
};

/// [`serve`], on a thread of its own, and with another one for new connections.
///
/// What the front passes on is many small pieces for many tasks, which on several threads would mostly wake each other up; on one, all that
/// is ready is done in one turn. Connections that nothing has come on yet are none of these pieces, and a stranger can open any number.
pub async fn serve_on_thread(listener: TcpListener, front: Front, shutdown: CancellationToken) {
    match OwnThread::new() {
        Ok(thread) => thread.run(serve(listener, front, Accepting::OnThread, shutdown)).await,
        Err(error) => {
            warn!(%error, "Port 6443 gets no thread of its own and is slower.");
            serve(listener, front, Accepting::Here, shutdown).await;
        }
    }
}
