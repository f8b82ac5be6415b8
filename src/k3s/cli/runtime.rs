//! The asynchronous runtime and the log of a long-running verb.

use std::{
    future::Future,
    io::{self, IsTerminal},
};

use k3s_supervise::log::Target;
use tracing::warn;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use super::{
    failure::{Failure, OS_ERROR},
    journal::Journal,
};

/// Without the Kubernetes client's own word on failed requests and refused watches: whoever asked says what it waits for, once. Nor is there a
/// line for each frame of a stranger's that has no meaning.
const INFO: &str = "info,h2=error,kube_client=off,kube_runtime=off";

const DEBUG: &str = "debug,h2=info,hyper=info,hyper_util=info,kube_client=off,kube_runtime=off,rustls=info,tower=info";

/// Runs a verb to its end. Two workers: our own work is small, and each more costs memory.
pub(super) fn run<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("k3s")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(OS_ERROR, format!("the runtime cannot start: {error}")))?;
    // rustls wants one provider for the whole process; a second call would find it set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    runtime.block_on(verb)
}

/// Logs to the journal where our standard error goes there, else to standard error: INFO and above, or what `K3S_LOG` asks for; `debug`
/// adds our own details.
pub(super) fn log(debug: bool) {
    let default = if debug { DEBUG } else { INFO };
    let filter = EnvFilter::try_from_env("K3S_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let registry = tracing_subscriber::registry().with(filter);
    let refused = match Target::detect() {
        Target::Stderr => None,
        Target::Journal { .. } => match Journal::connect() {
            Ok(journal) => return registry.with(journal).init(),
            Err(error) => Some(error),
        },
    };
    let colours = io::stderr().is_terminal();
    registry
        .with(
            tracing_subscriber::fmt::layer()
                .with_target(false)
                .with_ansi(colours)
                .with_writer(io::stderr)
                // It would tell by a macro that panics, where whoever reads the log has gone.
                .log_internal_errors(false),
        )
        .init();
    if let Some(error) = refused {
        warn!(%error, "The journal takes no entries: our own lines go to standard error, without priorities.");
    }
}
