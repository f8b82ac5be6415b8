//! Being part of the cluster: joining, going by what is remembered while no server answers, and joining anew in time.
//!
//! ```text
//!                 a server answers
//! start ───────────────────────────────────▶ joined ──▶ two thirds of a certificate's life ─┐
//!   │  none answers, and                       ▲  ▲                                         │
//!   └─ there is a memory ─▶ remembered ────────┘  └──────────────── joins again ────────────┘
//!                            a server answers
//! ```
//!
//! A node that moves to another address uses it at once, and joins again for a certificate with it.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use k3s_files as files;
use k3s_pki::{AgentPki, Certificate};
use k3s_supervise::{Backoff, Gate, Supervisor};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    api::Renewed,
    cluster_config::{ClusterConfig, MetricsConfig},
    error::chain,
    join::{Joined, NodeRegistration},
    join_error::JoinError,
    server_api::ServerApi,
};

/// How long a server may take before a node that remembers its cluster starts without one.
const GRACE: Duration = Duration::from_secs(5);
/// Between attempts at first, and at most with as much again by chance: k3s tries every five to ten seconds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// A renewal is looked at again at least so often: clocks are set, and machines sleep.
const LOOK: Duration = Duration::from_secs(12 * 60 * 60);
/// Between two renewals, whatever certificates and clocks say.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10 * 60);

/// What is effective for the node at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EffectiveState {
    /// As the server told last.
    pub(crate) config: ClusterConfig,
    /// What servers are checked by; programs that read it at their start have to be started anew when it changes.
    pub(crate) authority: Bytes,
    /// The node's own addresses, the primary first.
    pub(crate) ips: Vec<IpAddr>,
}

/// What becomes of an attempt to join that nothing but another configuration can mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnFinalError {
    /// It is the agent's end.
    Return,
    /// It is tried again, since the node runs by what it remembers.
    Retry,
}

/// What is known of the cluster, and who is asked for more.
pub(crate) struct Membership {
    registration: NodeRegistration,
    known: watch::Sender<Option<EffectiveState>>,
    api: watch::Sender<Option<ServerApi>>,
    renewed: watch::Sender<()>,
}

impl EffectiveState {
    /// How the cluster wants this node's metrics shown, if it does.
    pub(crate) fn metrics(&self) -> Option<&MetricsConfig> {
        self.config.metrics.as_ref()
    }
}

impl Membership {
    pub(crate) fn new(registration: NodeRegistration) -> Self {
        let (known, api) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { registration, known, api, renewed: watch::Sender::new(()) }
    }

    /// What the node is to use, as it changes; none until [`Self::run`] has something.
    pub(crate) fn known(&self) -> watch::Receiver<Option<EffectiveState>> {
        self.known.subscribe()
    }

    /// The servers' API with the newest certificate; none before the first join of this start.
    pub(crate) fn api(&self) -> watch::Receiver<Option<ServerApi>> {
        self.api.subscribe()
    }

    /// Told of each join: it brought new certificates.
    pub(crate) fn renewed(&self) -> Renewed {
        self.renewed.subscribe()
    }

    /// Gets in and stays in, for as long as it is polled. `gate` opens with the first join of this start.
    ///
    /// # Errors
    /// What no server can mend, for a node that remembers nothing.
    pub(crate) async fn run(&self, gate: &Gate, supervisor: &Supervisor) -> Result<(), JoinError> {
        gate.waiting(format!("an answer of {}", self.registration.server));
        let remembered = self.registration.remembered()?;
        match remembered {
            Some(config) => self.remember(config, gate).await?,
            None => self.accept(self.until_joined(gate, OnFinalError::Return).await?)?,
        }
        gate.open();
        let mut pause = Duration::ZERO;
        loop {
            let due = async {
                sleep(pause).await;
                self.until_due().await;
            };
            let moved = tokio::select! {
                () = due => None,
                config = self.moved() => Some(config),
            };
            match moved {
                None => self.renew(supervisor).await?,
                Some(config) => {
                    info!("This node has moved to another address.");
                    self.know(config)?;
                    self.accept(self.until_joined(gate, OnFinalError::Retry).await?)?;
                }
            }
            pause = RENEWAL_PAUSE;
        }
    }

    async fn renew(&self, supervisor: &Supervisor) -> Result<(), JoinError> {
        info!("This node's certificates are renewed.");
        match self.registration.join().await {
            Ok(joined) => {
                supervisor.clear("renewal");
                self.accept(joined)
            }
            Err(error) => {
                let why = chain(&error);
                warn!(error = why, "This node's certificates could not be renewed; trying again.");
                supervisor.warn("renewal", format!("This node's certificates could not be renewed: {why}."));
                Ok(())
            }
        }
    }

    /// Goes by memory unless a server answers soon, and joins when one does. A server that refuses has answered: a copy of this node's
    /// disk must not run beside it.
    async fn remember(&self, config: ClusterConfig, gate: &Gate) -> Result<(), JoinError> {
        match timeout(GRACE, self.registration.join()).await {
            Ok(Ok(joined)) => return self.accept(joined),
            Ok(Err(error)) if error.is_refusal() => {}
            Ok(Err(_)) | Err(_) => {
                let server = &self.registration.server;
                info!(%server, "No server has answered yet: this node starts with what it remembers of its cluster.");
                self.know(config)?;
            }
        }
        self.accept(self.until_joined(gate, OnFinalError::Retry).await?)
    }

    /// Tries until a server lets this node in. What it waits for is logged when it changes, and always in the status.
    async fn until_joined(&self, gate: &Gate, on_final: OnFinalError) -> Result<Joined, JoinError> {
        let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
        let mut told = String::new();
        loop {
            let error = match self.registration.join().await {
                Ok(joined) => return Ok(joined),
                Err(error) if error.is_final() && on_final == OnFinalError::Return => return Err(error),
                Err(error) => chain(&error),
            };
            gate.waiting(error.clone());
            if error != told {
                warn!(server = %self.registration.server, "This node is not in the cluster yet; retrying: {error}.");
                told = error;
            }
            sleep(backoff.advance()).await;
        }
    }

    fn accept(&self, joined: Joined) -> Result<(), JoinError> {
        self.api.send_replace(Some(joined.api));
        self.renewed.send_replace(());
        self.know(joined.config)
    }

    fn know(&self, config: ClusterConfig) -> Result<(), JoinError> {
        let authority = files::read(&self.pki().server_ca)?.map(Bytes::from).unwrap_or_default();
        let ips = self.registration.ips.borrow().clone();
        let known = Some(EffectiveState { config, authority, ips });
        self.known.send_if_modified(|old| {
            let differs = *old != known;
            *old = known;
            differs
        });
        Ok(())
    }

    /// Waits until the node's addresses are others than its effective ones, and returns what it knows of the cluster.
    async fn moved(&self) -> ClusterConfig {
        let mut ips = self.registration.ips.clone();
        let going_by_others = |now: &[IpAddr]| {
            self.known.borrow().as_ref().filter(|known| known.ips != now).map(|known| known.config.clone())
        };
        loop {
            if let Some(config) = going_by_others(&ips.borrow_and_update()) {
                return config;
            }
            if ips.changed().await.is_err() {
                // Nobody follows the addresses.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until one of this node's certificates has lived two thirds of its life.
    async fn until_due(&self) {
        let pki = self.pki();
        loop {
            let certificates =
                [&pki.serving_kubelet, &pki.client_kubelet, &pki.client_kube_proxy, &pki.client_k3s_controller];
            let now = SystemTime::now();
            let left = certificates.into_iter().map(|files| time_left(&files.certificate, now)).min();
            match left.unwrap_or_default() {
                Duration::ZERO => return,
                left => sleep(left.min(LOOK)).await,
            }
        }
    }

    fn pki(&self) -> AgentPki {
        AgentPki::at(&self.registration.dir)
    }
}

/// How long a certificate stays as it is; no time if there is none to read.
///
/// Its life begins when it came: k3s dates certificates back to their authority's first day.
fn time_left(certificate: &Path, now: SystemTime) -> Duration {
    let found = files::read(certificate).ok().flatten().and_then(|pem| Certificate::first_of(&pem).ok());
    let Some(found) = found else { return Duration::ZERO };
    let came = fs::metadata(certificate).and_then(|file| file.modified()).unwrap_or(now).min(now);
    let (from, to) = (came.max(found.not_before.into()), SystemTime::from(found.not_after));
    let life = to.duration_since(from).unwrap_or_default();
    (from + life * 2 / 3).duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::{
        api::lasting_client,
        testing::{LIFETIME, TestServer, supervisor},
    };

    /// Runs a membership until the node knows its cluster, and longer if `and` says so.
    async fn hold<T>(membership: &Membership, and: impl AsyncFnOnce(&Supervisor) -> T) -> T {
        let supervisor = supervisor();
        let gate = supervisor.gate("server").unwrap();
        let looked = async {
            membership.known().wait_for(Option::is_some).await.unwrap();
            and(&supervisor).await
        };
        tokio::select! {
            ended = membership.run(&gate, &supervisor) => panic!("{ended:?}"),
            looked = looked => looked,
        }
    }

    async fn waiting_for(supervisor: &Supervisor) -> Option<String> {
        supervisor.status().await.gates.remove(0).waiting_for
    }

    #[tokio::test]
    async fn a_node_joins_and_knows_whom_to_ask() {
        let server = TestServer::start().await;
        let membership = Membership::new(server.registration(Some(server.token())));
        hold(&membership, async |supervisor| supervisor.ready("server").await.unwrap()).await;
        assert!(membership.api().borrow().is_some());
    }

    #[tokio::test]
    async fn a_node_that_moves_goes_by_its_new_address_and_joins_again() {
        let server = TestServer::start().await;
        let ips = watch::Sender::new(vec![IpAddr::from([192, 0, 2, 7])]);
        let registration = NodeRegistration { ips: ips.subscribe(), ..server.registration(Some(server.token())) };
        let membership = Membership::new(registration);
        hold(&membership, async |_| {
            let certificate = || fs::read(membership.pki().client_kubelet.certificate).unwrap();
            let (before, mut renewed) = (certificate(), membership.renewed());
            let moved = vec![IpAddr::from([192, 0, 2, 8])];
            ips.send_replace(moved.clone());
            let goes_by_it = |now: &Option<EffectiveState>| now.as_ref().is_some_and(|now| now.ips == moved);
            membership.known().wait_for(goes_by_it).await.unwrap();
            renewed.changed().await.unwrap();
            assert_ne!(certificate(), before);
        })
        .await;
    }

    #[tokio::test]
    async fn clients_of_the_api_outlive_their_certificates() {
        let server = TestServer::start().await;
        server.backdate(2 * LIFETIME);
        let ips = watch::Sender::new(vec![IpAddr::from([192, 0, 2, 7])]);
        let registration = NodeRegistration { ips: ips.subscribe(), ..server.direct_applicant() };
        let membership = Membership::new(registration);
        hold(&membership, async |_| {
            let mut renewed = membership.renewed();
            let kubeconfig = membership.pki().kubelet_kubeconfig;
            let client = lasting_client(&kubeconfig, membership.renewed()).await.unwrap();
            let ask = async || {
                let request = http::Request::get("/version").body(Vec::new()).unwrap();
                client.request_text(request).await
            };
            let refused = ask().await.unwrap_err().to_string();
            assert!(refused.contains("Unauthorized"), "its certificate has ended: {refused}");
            server.backdate(Duration::ZERO);
            ips.send_replace(vec![IpAddr::from([192, 0, 2, 8])]);
            while ask().await.is_err() {
                renewed.changed().await.unwrap();
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_node_goes_by_memory_while_a_server_is_not_ready_and_joins_later() {
        let server = TestServer::start().await;
        server.registration(Some(server.token())).join().await.unwrap();
        server.answer("/v1-k3s/config", StatusCode::SERVICE_UNAVAILABLE);
        let membership = Membership::new(server.registration(None));
        hold(&membership, async |supervisor| {
            assert!(membership.api().borrow().is_none());
            assert!(waiting_for(supervisor).await.is_some());
            server.answer("/v1-k3s/config", StatusCode::OK);
            supervisor.ready("server").await.unwrap();
            assert!(membership.api().borrow().is_some());
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_node_does_not_go_by_memory() {
        let server = TestServer::start().await;
        server.registration(Some(server.token())).join().await.unwrap();
        server.answer("/v1-k3s/serving-kubelet.crt", StatusCode::FORBIDDEN);
        let membership = Membership::new(server.registration(None));
        let supervisor = supervisor();
        let gate = supervisor.gate("server").unwrap();
        let mut headlines = supervisor.subscribe();
        tokio::select! {
            ended = membership.run(&gate, &supervisor) => panic!("{ended:?}"),
            told = headlines.wait_for(|told| told.contains("k3s node forget edge-1")) => drop(told.unwrap()),
        }
        assert!(membership.known().borrow().is_none());
        assert!(waiting_for(&supervisor).await.is_some_and(|what| what.contains("refuses the node name edge-1")));
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.crt");
        let day = Duration::from_secs(24 * 60 * 60);
        let start = SystemTime::UNIX_EPOCH + 20_000 * day;
        let mut params = CertificateParams::default();
        // The authority is older by years.
        (params.not_before, params.not_after) = ((start - 3000 * day).into(), (start + 300 * day).into());
        fs::write(&path, params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(start).unwrap();
        assert_eq!(time_left(&path, start), 200 * day);
        assert_eq!(time_left(&path, start + 199 * day), day);
        assert_eq!(time_left(&path, start + 201 * day), Duration::ZERO);
        assert_eq!(time_left(&folder.path().join("none"), start), Duration::ZERO);
    }
}
