//! `https://NODE:6443/metrics`: what this agent counts, where the cluster wants it shown (`--supervisor-metrics` of its servers).
//!
//! As in k3s, the page is on the port that servers have, under the certificate that kubelet serves with, and for those whom the API lets
//! `get` the path `/metrics`.
//!
//! ```text
//! not wanted ◀──▶ bound ──▶ served; certificates are exchanged as they are renewed
//!                  │  ▲
//!         the port ▼  │ tried again
//!           is taken: told
//! ```

mod access;
mod listener;
mod refusal;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k3s_files::{self as files, FileError};
use k3s_pki::{AgentPki, CertificateError, ClientCa, CurrentCertificate, TlsPolicy, Unreadable};
use k3s_supervise::{Backoff, Supervisor};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    Error,
    api::{self, Renewed},
    cluster_config::MetricsConfig,
    error::chain,
    membership::EffectiveState,
};
use access::Access;
use listener::Page;

/// Between attempts to get the port at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// The warning in the status.
const KEY: &str = "metrics";

/// The page and what it needs.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// What is shown.
    pub(crate) registry: Arc<Registry>,
    /// Where this node's listeners bind (`--bind-address`).
    pub(crate) address: IpAddr,
    /// `<data>/agent`.
    pub(crate) dir: PathBuf,
    /// Shows what keeps the page from being served.
    pub(crate) supervisor: Supervisor,
}

/// Why the page cannot be served, or not with what a renewal brought.
#[derive(Debug, thiserror::Error)]
enum Unservable {
    #[error("{address} cannot be listened on ({source}): stop the program that has the port")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("kubelet's certificate cannot be shown: {0}")]
    Certificate(#[from] CertificateError),
    #[error("clients' certificates cannot be checked: {0}")]
    ClientCa(#[from] Unreadable),
    #[error(transparent)]
    Client(#[from] Error),
}

impl Metrics {
    /// Serves the page wherever `known` says that it is wanted, with certificates that `renewed` tells of, until `shutdown`. What keeps it
    /// from that is told, and tried again.
    pub(crate) async fn run(
        &self,
        mut known: watch::Receiver<Option<EffectiveState>>,
        renewed: Renewed,
        shutdown: CancellationToken,
    ) {
        while let Some(Some(wanted)) = shutdown.run_until_cancelled(until_wanted(&mut known)).await {
            let end = shutdown.child_token();
            let changed = async {
                let differs =
                    |now: &Option<EffectiveState>| now.as_ref().and_then(EffectiveState::metrics) != Some(&wanted);
                let mut known = known.clone();
                // The membership may end first: what is wanted stays as it is then.
                if end.run_until_cancelled(known.wait_for(differs)).await.is_some_and(|seen| seen.is_ok()) {
                    end.cancel();
                }
            };
            let show = async {
                if let Some(listener) = end.run_until_cancelled(self.bind(wanted.port)).await {
                    self.serve(listener, &wanted, renewed.clone(), &end).await;
                }
            };
            tokio::join!(show, changed);
            self.supervisor.clear(KEY);
        }
    }

    /// Serves it in one place, with whatever certificates there are at the time, until `end`.
    async fn serve(
        &self,
        listener: TcpListener,
        wanted: &MetricsConfig,
        mut renewed: Renewed,
        end: &CancellationToken,
    ) {
        let Some((certificate, access)) = end.run_until_cancelled(self.first(&mut renewed)).await else { return };
        let suites = Some(wanted.cipher_suites.join(",")).filter(|suites| !suites.is_empty());
        let tls = TlsPolicy::new(Some(&wanted.min_tls_version), suites.as_deref());
        let access = watch::Sender::new(Arc::new(access));
        let page = Page { registry: self.registry.clone(), access: access.subscribe() };
        let certificate = Arc::new(certificate);
        let renew = async {
            while renewed.changed().await.is_ok() {
                match self.load().await {
                    Ok((new_certificate, new_access)) => {
                        certificate.take_over(&new_certificate);
                        access.send_replace(Arc::new(new_access));
                        self.supervisor.clear(KEY);
                    }
                    Err(error) => self.tell(&error),
                }
            }
        };
        let serve = listener::serve(listener, page, tls.server_config(certificate.clone()), end.clone());
        tokio::join!(serve, end.run_until_cancelled(renew));
    }

    /// Listens, as soon as the port is free.
    async fn bind(&self, port: u16) -> TcpListener {
        let address = SocketAddr::new(self.address, port);
        let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
        let mut told = false;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    self.supervisor.clear(KEY);
                    return listener;
                }
                Err(source) if !told => self.tell(&Unservable::Listen { address, source }),
                Err(_) => {}
            }
            told = true;
            backoff.wait().await;
        }
    }

    /// What to serve with, as soon as it is there: a node that is known may have files that are not whole.
    async fn first(&self, renewed: &mut Renewed) -> (CurrentCertificate, Access) {
        loop {
            renewed.mark_unchanged();
            match self.load().await {
                Ok(loaded) => return loaded,
                Err(error) => self.tell(&error),
            }
            if renewed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What the last join left on the disk.
    async fn load(&self) -> Result<(CurrentCertificate, Access), Unservable> {
        let pki = AgentPki::at(&self.dir);
        let read = |path| files::read(path).map(Option::unwrap_or_default);
        let serving = &pki.serving_kubelet;
        let certificate = CurrentCertificate::from_pem(&read(&serving.certificate)?, &read(&serving.key)?)?;
        let client_ca = ClientCa::new(&read(&pki.client_ca)?)?;
        Ok((certificate, Access::new(client_ca, api::hasty_client(&pki.kubelet_kubeconfig).await?)))
    }

    fn tell(&self, error: &Unservable) {
        let why = chain(error);
        warn!(error = why, "This node's metrics are not served as they should be.");
        self.supervisor.warn(KEY, format!("This node's metrics are not served as they should be: {why}."));
    }
}

/// Waits until the page is wanted; `None` if that cannot come about any more.
async fn until_wanted(known: &mut watch::Receiver<Option<EffectiveState>>) -> Option<MetricsConfig> {
    let wants = |known: &Option<EffectiveState>| known.as_ref().and_then(EffectiveState::metrics).is_some();
    known.wait_for(wants).await.ok()?.as_ref().and_then(EffectiveState::metrics).cloned()
}
