//! The listener on port 6443.

use std::{future::Future, sync::Arc, time::Duration};

use k3s_listener::{Arrival, Connections, Handshakes, Limits, accept, accept_on_thread};
use k3s_pki::{CurrentCertificate, TlsPolicy};
use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    Front,
    connection::{self, Context},
    gateway::Gateway,
    tasks::Tasks,
};

/// After shutdown begins, what is left of requests may take this long; watches never end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// Where connections are taken in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Accepting {
    /// Where they are served.
    Here,
    /// On a thread of its own.
    OnThread,
}

/// Serves clients until `shutdown`, then drains: clients are told to go, requests in flight get 2 s, the rest is cut.
/// Returns when nothing of it is left.
pub(super) async fn serve(listener: TcpListener, front: Front, accepting: Accepting, shutdown: CancellationToken) {
    let tasks = Tasks::default();
    // Nothing runs on unseen when the caller gives this future up.
    let _cut = tasks.cut_on_drop();
    let handshakes = Handshakes::new(front.tls.server_config(front.certificate.clone()));
    let (client_ca, limits) = (front.client_ca.clone(), front.limits);
    let context = Context::new(handshakes, tasks.clone(), shutdown.clone());
    let context = Arc::new(context.with_gateway(client_ca, Gateway::new(front, shutdown)));
    if let Ok(address) = listener.local_addr() {
        info!(%address, "Serving the Kubernetes API.");
    }
    let connections = Connections::new(limits);
    match accepting {
        Accepting::Here => {
            accept(&listener, &connections, &context.shutdown, begin(&context)).await;
            drop(listener);
        }
        Accepting::OnThread => {
            accept_on_thread(listener, connections, context.shutdown.clone(), begin(&context)).await;
        }
    }
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
    let handshakes = Handshakes::new(tls.server_config(certificate));
    let context = Arc::new(Context::new(handshakes, tasks.clone(), started.clone()));
    let start = async {
        let outcome = start.await;
        started.cancel();
        outcome
    };
    let connections = Connections::new(Limits::of_process());
    let (outcome, ()) = tokio::join!(start, accept(listener, &connections, &context.shutdown, begin(&context)));
    tasks.end(Duration::ZERO).await;
    outcome
}

/// Serves each connection here, wherever it was taken in.
fn begin(context: &Arc<Context>) -> impl FnMut(Arrival) + Send + use<> {
    let (context, here) = (context.clone(), Handle::current());
    move |arrival| context.tasks.spawn_on(connection::serve(arrival, context.clone()), &here)
}
