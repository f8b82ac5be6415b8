//! A server of etcd alone in a cluster that no server with kube-apiserver has joined yet: what needs the API says so, and where it will be.

use std::{path::Path, time::Duration};

use k3s_components::Paths;
use k3s_supervise::status::fetch;
use tokio::time::timeout;

/// What a server without kube-apiserver keeps, and servers with it do not.
const BALANCER: &str = "k3s-agent-load-balancer.json";
/// A server that runs answers at once.
const MOMENT: Duration = Duration::from_secs(2);

/// Why the API of the server in `data_dir` answers nobody, in its own words; `None` where it does, or no server runs.
pub(super) async fn reason(data_dir: &Path) -> Option<String> {
    let paths = Paths::new(data_dir, Paths::RUN);
    // Others are not asked: their answer has a price, as it counts memory.
    if !paths.agent_etc(BALANCER).exists() {
        return None;
    }
    let status = timeout(MOMENT, fetch(&paths.status_socket())).await.ok()?.ok()?;
    status.gates.into_iter().find(|gate| gate.elsewhere)?.waiting_for
}
