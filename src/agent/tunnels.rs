//! A websocket to each server, by which servers reach into this node, and which tells how each of them does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use k3s_balancer::{Address, Balancer, Health};
use k3s_controllers::Backoff;
use k3s_files as files;
use k3s_pki::AgentPki;
use k3s_supervise::Supervisor;
use k3s_tunnel::{ConnectError, Rules, Tunnel};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch, task::JoinSet, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    error::chain,
    join::JoinError,
    reach::{self, Reachable},
    trust::{Identity, Trust},
};

/// Between attempts at first, as in k3s, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// How long a server may take to accept and to shake hands.
const CONNECT: Duration = Duration::from_secs(10);

/// What every tunnel is made with.
#[derive(Debug, Clone)]
pub(crate) struct Tunnels {
    /// Where servers are, as they change.
    pub(crate) servers: watch::Receiver<BTreeSet<Address>>,
    /// Told how each of them does; a server's own node has none.
    pub(crate) balancer: Option<Balancer>,
    /// What servers may reach.
    pub(crate) rules: watch::Receiver<Rules>,
    /// Shows servers that cannot be reached.
    pub(crate) supervisor: Supervisor,
    /// `<data>/agent`.
    pub(crate) dir: PathBuf,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("{0} is no name that a certificate could have")]
    Name(String),
    #[error(transparent)]
    Credentials(#[from] JoinError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Holds tunnels from a server's own node to the other servers, which reach its kubelet and pods by them; for as long as it is polled.
pub async fn hold_tunnels(servers: watch::Receiver<BTreeSet<Address>>, node: &Reachable, supervisor: &Supervisor) {
    let rules = reach::kubelet_alone();
    let tunnels = Tunnels {
        servers,
        balancer: None,
        rules: rules.subscribe(),
        supervisor: supervisor.clone(),
        dir: node.paths.agent(),
    };
    tokio::join!(tunnels.hold(), node.keep(&rules));
}

impl Tunnels {
    /// Holds one to each server, for as long as it is polled.
    pub(crate) async fn hold(&self) {
        let mut servers = self.servers.clone();
        let mut held: BTreeMap<Address, CancellationToken> = BTreeMap::new();
        // Ends them when this future is given up.
        let mut tasks = JoinSet::new();
        loop {
            let wanted = servers.borrow_and_update().clone();
            for address in &wanted {
                held.entry(address.clone()).or_insert_with(|| {
                    let end = CancellationToken::new();
                    tasks.spawn(self.clone().keep(address.clone(), end.clone()));
                    end
                });
            }
            held.retain(|address, end| {
                let stays = wanted.contains(address);
                if !stays {
                    end.cancel();
                }
                stays
            });
            tokio::select! {
                changed = servers.changed() => if changed.is_err() { return },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    /// Connects to one server again and again.
    async fn keep(self, server: Address, end: CancellationToken) {
        let warning = format!("tunnel {server}");
        let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
        let mut told = false;
        while let Some(connected) = end.run_until_cancelled(self.connect(&server)).await {
            let why = match connected {
                Ok(tunnel) => {
                    self.tell(&server, Health::Ok);
                    self.supervisor.clear(&warning);
                    info!(%server, "The tunnel to the server stands.");
                    backoff.begin_anew();
                    told = false;
                    match tunnel.serve(self.rules.clone(), &end).await {
                        Ok(()) => "the server ended it".to_owned(),
                        Err(error) => chain(&error),
                    }
                }
                Err(error) => chain(&error),
            };
            self.tell(&server, Health::Failed);
            if end.is_cancelled() {
                break;
            }
            if !told {
                warn!(%server, why, "There is no tunnel to the server; trying on.");
                told = true;
            }
            self.supervisor.warn(&warning, format!("There is no tunnel to the server {server}: {why}."));
            end.run_until_cancelled(backoff.wait()).await;
        }
        self.supervisor.clear(&warning);
    }

    fn tell(&self, server: &Address, health: Health) {
        if let Some(balancer) = &self.balancer {
            balancer.set_health(server, health);
        }
    }

    async fn connect(&self, server: &Address) -> Result<Tunnel<TlsStream<TcpStream>>, Broken> {
        // Read anew each time: certificates are renewed in place.
        let pki = AgentPki::at(&self.dir);
        let authorities = files::read(&pki.server_ca).map_err(JoinError::from)?.map(Bytes::from).unwrap_or_default();
        let tls = Trust::Authorities(authorities).tls(Identity::load(&pki.client_kubelet))?;
        let name =
            ServerName::try_from(server.host().to_owned()).map_err(|_| Broken::Name(server.host().to_owned()))?;
        let shaken = async {
            let stream = TcpStream::connect((server.host(), server.port())).await.map_err(Broken::Unreachable)?;
            stream.set_nodelay(true).map_err(Broken::Unreachable)?;
            TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map_err(Broken::Handshake)
        };
        let late = |_| Err(Broken::Unreachable(io::ErrorKind::TimedOut.into()));
        let stream = timeout(CONNECT, shaken).await.unwrap_or_else(late)?;
        Ok(Tunnel::connect(stream, &server.to_string()).await?)
    }
}
