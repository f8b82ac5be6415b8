//! The listener on port 6443.

use std::{future::Future, io, sync::Arc, time::Duration};

use k3s_listener::Verification;
use k3s_pki::{CurrentCertificate, TlsPolicy};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Front,
    connection::{self, Context},
    gateway::Gateway,
    tasks::Tasks,
};

/// After shutdown begins, what is left of requests may take this long; watches never end by themselves.
const GRACE: Duration = Duration::from_secs(2);
/// After the system had no descriptor or memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves clients until `shutdown`, then drains: clients are told to go, requests in flight get 2 s, the rest is cut.
/// Returns when nothing of it is left.
pub(super) async fn serve(listener: TcpListener, front: Front, shutdown: CancellationToken) {
    let tasks = Tasks::default();
    // Nothing runs on unseen when the caller gives this future up.
    let _cut = tasks.cut_on_drop();
    let context = Arc::new(Context {
        acceptor: TlsAcceptor::from(Arc::new(front.tls.server_config(front.certificate.clone()))),
        client_ca: Some(front.client_ca.clone()),
        verification: Verification::new(),
        gateway: Some(Gateway::new(front, shutdown.clone())),
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
    });
    if let Ok(address) = listener.local_addr() {
        info!(%address, "Serving the Kubernetes API.");
    }
    accept(&listener, &context).await;
    drop(listener);
    tasks.end(GRACE).await;
    if let Some(gateway) = &context.gateway {
        gateway.close().await;
    }
}

/// Until `start` is through, answers every request with 503 `starting`, as k3s does. The listener stays bound for [`serve`].
pub async fn serve_starting<T>(
    listener: &TcpListener,
    certificate: Arc<CurrentCertificate>,
    tls: &TlsPolicy,
    start: impl Future<Output = T>,
) -> T {
    let (tasks, started) = (Tasks::default(), CancellationToken::new());
    let _cut = tasks.cut_on_drop();
    let context = Arc::new(Context {
        acceptor: TlsAcceptor::from(Arc::new(tls.server_config(certificate))),
        gateway: None,
        client_ca: None,
        verification: Verification::new(),
        tasks: tasks.clone(),
        shutdown: started.clone(),
    });
    let start = async {
        let outcome = start.await;
        started.cancel();
        outcome
    };
    let (outcome, ()) = tokio::join!(start, accept(listener, &context));
    tasks.end(Duration::ZERO).await;
    outcome
}

/// Takes connections in until the context's shutdown.
async fn accept(listener: &TcpListener, context: &Arc<Context>) {
    let shutdown = &context.shutdown;
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, address)) => context.tasks.spawn(connection::serve(stream, address, context.clone())),
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                warn!(%error, "Cannot accept connections.");
                shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }
}

/// Whether the failure is that connection's alone.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
