//! The kube-apiservers of other servers, as a server that runs none reaches them (`--disable-apiserver`).
//!
//! ```text
//! etcd: `k3s/apiaddresses` ──► who they are ─┐
//! kubelet, kube-proxy, our own clients ──► 127.0.0.1:6444 ──► the front of one of them
//! ```
//! kubeconfigs name the same port as beside a kube-apiserver of one's own, so that nobody else has to know.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use k3s_agent::BALANCER;
use k3s_balancer::{Address, Balancer, Options};
use k3s_components::Paths;
use k3s_config::server::ServerConfig;
use k3s_datastore::Client;
use k3s_supervise::{Gate, StatusLine, TaskError};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{Error, api_addresses};

/// How often etcd is asked who they are, as in k3s.
const ASKED_EACH: Duration = Duration::from_secs(5);

/// The way to them.
#[derive(Debug, Clone)]
pub(crate) struct OtherApiServers {
    balancer: Balancer,
}

impl OtherApiServers {
    /// `None` for a server that runs kube-apiserver itself.
    pub(crate) fn of(config: &ServerConfig, paths: &Paths) -> Result<Option<Self>, Error> {
        if !config.disabled.apiserver {
            return Ok(None);
        }
        // They are learned from this server's own etcd: there is no other server that clients could go to before.
        let url = format!("https://{}:{}", config.reached_at(), config.https_listen_port);
        let balancer =
            Balancer::new(Options { name: BALANCER.to_owned(), url, default: None, state_file: state_file(paths) })?;
        Ok(Some(Self { balancer }))
    }

    pub(crate) fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Where they are, as it changes.
    pub(crate) fn servers(&self) -> watch::Receiver<BTreeSet<Address>> {
        self.balancer.servers()
    }

    /// Forwards to them what `listener` accepts, until `shutdown`.
    pub(crate) async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        self.balancer.serve(listener, shutdown).await;
    }

    /// Keeps the list as `etcd` tells it, for as long as it is polled. What cannot be read leaves it as it was.
    pub(crate) async fn follow(&self, etcd: Client, line: StatusLine) -> Result<(), TaskError> {
        loop {
            match api_addresses::known(&etcd).await {
                Ok(servers) => self.balancer.set_servers(servers),
                Err(error) => debug!(%error, "etcd could not be asked where kube-apiservers are."),
            }
            line.set(sentence(&self.balancer.listed()));
            sleep(ASKED_EACH).await;
        }
    }

    /// Opens what waits for kube-apiserver once one of them answers the holder of a kubeconfig. `own` is where servers join this one.
    pub(crate) async fn open(&self, gate: &Gate, kubeconfig: PathBuf, own: (IpAddr, u16)) {
        let mut servers = self.servers();
        // One that an earlier start has known is to answer.
        if servers.borrow().is_empty() {
            let (ip, port) = own;
            let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            gate.waiting_for_others(format!(
                "no server with kube-apiserver has joined yet: start one with --server=https://{host}:{port}, and --disable-etcd if it is to \
                 run no etcd"
            ));
        }
        if servers.wait_for(|servers| !servers.is_empty()).await.is_ok() {
            k3s_agent::until_api_ready(&kubeconfig, gate).await;
            info!("Another server's kube-apiserver answers.");
            gate.open();
        }
    }
}

/// Forgets the servers of a cluster that begins anew.
///
/// # Errors
/// The file cannot be removed.
pub(crate) fn forget(paths: &Paths) -> Result<(), Error> {
    k3s_files::remove(&state_file(paths))?;
    Ok(())
}

fn state_file(paths: &Paths) -> PathBuf {
    paths.agent_etc(&format!("{BALANCER}.json"))
}

fn sentence(servers: &BTreeSet<Address>) -> String {
    if servers.is_empty() {
        return "etcd names no server with kube-apiserver yet".to_owned();
    }
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    format!("the load balancer leads to kube-apiserver at {}", servers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    #[tokio::test]
    async fn a_server_without_kube_apiserver_forwards_to_those_that_etcd_names() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        assert!(OtherApiServers::of(&config("one", ["--cluster-init"]), &paths).unwrap().is_none());
        let config = config("one", ["--cluster-init", "--disable-apiserver"]);
        let others = OtherApiServers::of(&config, &paths).unwrap().expect("it has none of its own");
        assert!(others.servers().borrow().is_empty(), "it is no server of the API itself");
        assert_eq!(sentence(&others.balancer().listed()), "etcd names no server with kube-apiserver yet");

        others.balancer().set_servers([Address::new("10.0.0.2", 6443)].into());
        assert_eq!(sentence(&others.balancer().listed()), "the load balancer leads to kube-apiserver at 10.0.0.2:6443");
        let again = OtherApiServers::of(&config, &paths).unwrap().unwrap();
        assert_eq!(*again.servers().borrow(), [Address::new("10.0.0.2", 6443)].into(), "the next start knows them");
        forget(&paths).unwrap();
        let anew = OtherApiServers::of(&config, &paths).unwrap().unwrap();
        assert!(anew.servers().borrow().is_empty());
    }
}
