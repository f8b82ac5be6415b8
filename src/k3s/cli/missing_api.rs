//! A server of etcd alone in a cluster that no server with kube-apiserver has joined yet: what needs the API says so, and where it will be.

use std::{path::Path, time::Duration};

use k3s_agent::BALANCER;
use k3s_components::Paths;
use k3s_supervise::status::fetch;
use tokio::time::timeout;

/// A server that runs answers at once.
const MOMENT: Duration = Duration::from_secs(2);

/// Why the API of the server in `data_dir` answers nobody, in its own words; `None` where it does, or no server runs.
pub(super) async fn reason(data_dir: &Path) -> Option<String> {
    let paths = Paths::new(data_dir, Paths::RUN);
    // A server with kube-apiserver has no such balancer, and is not asked: its answer has a price, as it counts memory.
    if !paths.agent_etc(&format!("{BALANCER}.json")).exists() {
        return None;
    }
    let status = timeout(MOMENT, fetch(&paths.status_socket())).await.ok()?.ok()?;
    status.gates.into_iter().find(|gate| gate.elsewhere)?.waiting_for
}
