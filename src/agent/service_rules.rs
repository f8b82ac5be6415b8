//! kube-proxy's rules, put back when somebody removes them.
//!
//! With nftables kube-proxy misses its tables at the next change of a Service, or after an hour. A firewall that is loaded anew begins with
//! `flush ruleset`, and all Services are gone until then, cluster DNS among them.

use std::{convert::Infallible, time::Duration};

use k3s_network::{ForeignTables, TableError};
use k3s_supervise::{Backoff, Supervisor};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::error::chain;

const KUBE_PROXY: &str = "kube-proxy";
/// Between restarts at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Before the kernel is asked again to tell of changes.
const FOLLOW_AGAIN: Duration = Duration::from_secs(60);

/// Looks after them for as long as it is polled.
pub(crate) async fn run(supervisor: &Supervisor) -> Infallible {
    loop {
        let Err(error) = follow(supervisor).await;
        debug!(error = chain(&error), "Whoever removes kube-proxy's rules is not noticed.");
        sleep(FOLLOW_AGAIN).await;
    }
}

async fn follow(supervisor: &Supervisor) -> Result<Infallible, TableError> {
    // It calls its tables as it is called.
    let mut tables = ForeignTables::follow(KUBE_PROXY)?;
    let mut pauses = Backoff::between(PAUSES.0, PAUSES.1);
    loop {
        tables.removed().await?;
        warn!("Somebody has removed kube-proxy's rules; it is restarted to put them back.");
        // Where it is not running, it makes them when it starts.
        let _ = supervisor.restart(KUBE_PROXY).await;
        pauses.wait().await;
        // What was removed before it was ready again is there by now.
        let _ = supervisor.ready(KUBE_PROXY).await;
    }
}
