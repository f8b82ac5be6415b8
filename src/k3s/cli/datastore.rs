//! `k3s datastore serve`: the store without a cluster, for inspection, repair and tests.

use std::{path::PathBuf, process::ExitCode};

use k3s_datastore::{Datastore, Endpoint, Options};
use tracing::info;

use super::{
    Failure,
    failure::{OS_ERROR, SOFTWARE},
    runtime, signals,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Serve a database file by etcd's API until told to stop
    Serve {
        /// The database file; it is made if it is not there
        #[arg(long, value_name = "FILE", default_value = "/var/lib/rancher/k3s/server/db/state.db")]
        path: PathBuf,
        /// unix:///PATH or http://127.0.0.1:PORT; may be repeated
        #[arg(long, value_name = "URL", required = true)]
        listen: Vec<Endpoint>,
    },
}

pub(super) fn run(verb: Verb) -> Result<ExitCode, Failure> {
    let Verb::Serve { path, listen } = verb;
    runtime::log(false);
    runtime::run(async {
        let shutdown = signals::shutdown_on_signal()
            .map_err(|error| Failure::new(OS_ERROR, format!("signals cannot be received: {error}")))?;
        let failed = |error: k3s_datastore::Error| Failure::from_error(SOFTWARE, &error);
        let store = Datastore::open(Options::new(path)).await.map_err(failed)?;
        let mut listeners = Vec::new();
        for endpoint in &listen {
            listeners.push(endpoint.bind().await.map_err(failed)?.serve(&store, shutdown.clone()));
            info!(%endpoint, "Serving the datastore.");
        }
        let served = tokio::select! {
            served = futures_util::future::try_join_all(listeners) => served.map(drop),
            error = store.stopped() => Err(error),
        };
        let closed = store.close().await;
        served.and(closed).map_err(failed)
    })?;
    Ok(ExitCode::SUCCESS)
}
