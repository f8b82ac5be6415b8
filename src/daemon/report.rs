//! What this process tells of itself, for as long as it lives: each listener of it served by a task of its own.

use std::sync::Arc;

use k3s_supervise::{Supervisor, notify::Notifier, status};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Serves the status, and tells the service manager how things are and that they go on, until `shutdown`. A panic in one of them is its
/// restart.
pub(crate) async fn report(
    status: UnixListener,
    notifier: &Arc<Notifier>,
    supervisor: &Supervisor,
    shutdown: &CancellationToken,
) {
    let status = Arc::new(status);
    let serving = supervisor.task("status").stops_within(status::PATIENCE);
    let [following, watching] = ["service-manager", "watchdog"].map(|name| supervisor.task(name));
    let serve = serving.run_always(shutdown, || status::serve(status.clone(), supervisor.clone(), shutdown.clone()));
    let follow = following.run_always(shutdown, || {
        let (notifier, headlines, shutdown) = (notifier.clone(), supervisor.subscribe(), shutdown.clone());
        async move { notifier.follow(headlines, shutdown).await }
    });
    let watch = watching.run_always(shutdown, || {
        let (notifier, supervisor, shutdown) = (notifier.clone(), supervisor.clone(), shutdown.clone());
        async move { notifier.watchdog(&supervisor, shutdown).await }
    });
    tokio::join!(serve, follow, watch);
}
