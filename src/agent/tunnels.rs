//! A websocket to each server, by which servers reach into this node, and which tells how each of them does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use k3s_balancer::{Address, Balancer, Health};
use k3s_files as files;
use k3s_pki::AgentPki;
use k3s_supervise::{Backoff, Supervisor};
use k3s_tunnel::{ConnectError, Rules, Tunnel};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    error::chain,
    join_error::JoinError,
    network,
    reach::{self, Reachable},
    trust::{Identity, Trust},
};

/// Between attempts at first, as in k3s, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// How long a server may take to accept and to shake hands.
const CONNECT: Duration = Duration::from_secs(10);
/// Lost addresses that a tunnel may leave unheard: more than a host has.
pub(crate) const LOST: usize = 256;

/// What every tunnel is made with.
#[derive(Debug, Clone)]
pub(crate) struct Tunnels {
    /// Where servers are, as they change.
    pub(crate) servers: watch::Receiver<BTreeSet<Address>>,
    /// Told how each of them does; the node of a server that runs kube-apiserver has none.
    pub(crate) balancer: Option<Balancer>,
    /// What servers may reach.
    pub(crate) rules: watch::Receiver<Rules>,
    /// Tells of addresses that this host loses: tunnels from them would hang until their heartbeat notices.
    pub(crate) lost: broadcast::Sender<IpAddr>,
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

/// Holds tunnels from a server's own node to the other servers, which reach its kubelet and pods by them; for as long as it is polled. A
/// `balancer` in front of these servers is told how they do.
pub async fn run_tunnels(
    servers: watch::Receiver<BTreeSet<Address>>,
    balancer: Option<Balancer>,
    node: &Reachable,
    supervisor: &Supervisor,
) {
    let rules = reach::kubelet_alone(node.kubelet);
    let tunnels = Tunnels {
        servers,
        balancer,
        rules: rules.subscribe(),
        lost: broadcast::Sender::new(LOST),
        supervisor: supervisor.clone(),
        dir: node.paths.agent(),
    };
    let follow = async {
        let Err(error) = network::follow_lost_addresses(tunnels.balancer.as_ref(), &tunnels.lost).await;
        warn!(
            error = chain(&error),
            "The host's addresses cannot be followed: after a change tunnels may hang for a minute."
        );
    };
    tokio::join!(tunnels.run(), node.keep(&rules), follow);
}

impl Tunnels {
    /// Holds one to each server, for as long as it is polled.
    pub(crate) async fn run(&self) {
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
        loop {
            let lost = self.lost.subscribe();
            let Some(connected) = end.run_until_cancelled(self.connect(&server)).await else { break };
            let why = match connected {
                Ok((tunnel, source)) => {
                    self.tell(&server, Health::Ok);
                    self.supervisor.clear(&warning);
                    info!(%server, "The tunnel to the server stands.");
                    backoff.begin_anew();
                    told = false;
                    let Some(why) = self.serve(tunnel, until_lost(source, lost), &end).await else {
                        // The server is as well as before, and reached by another way if there is one.
                        info!(%server, %source, "This node has lost the address that its tunnel came from; connecting anew.");
                        continue;
                    };
                    why
                }
                Err(error) => chain(&error),
            };
            self.tell(&server, Health::Failed);
            if end.is_cancelled() {
                break;
            }
            if !told {
                warn!(%server, why, "There is no tunnel to the server; retrying.");
                told = true;
            }
            self.supervisor.warn(&warning, format!("There is no tunnel to the server {server}: {why}."));
            end.run_until_cancelled(backoff.wait()).await;
        }
        self.supervisor.clear(&warning);
    }

    /// Serves a tunnel until it ends, and says why; `None` if `lost` came first.
    async fn serve(
        &self,
        tunnel: Tunnel<TlsStream<TcpStream>>,
        lost: impl Future<Output = ()>,
        end: &CancellationToken,
    ) -> Option<String> {
        let life = end.child_token();
        let serve = async {
            let ended = tunnel.serve(self.rules.clone(), &life).await;
            life.cancel();
            ended.map_or_else(|error| chain(&error), |()| "the server ended it".to_owned())
        };
        let watch = async {
            let is_lost = life.run_until_cancelled(lost).await.is_some();
            life.cancel();
            is_lost
        };
        let (why, is_lost) = tokio::join!(serve, watch);
        (!is_lost).then_some(why)
    }

    fn tell(&self, server: &Address, health: Health) {
        if let Some(balancer) = &self.balancer {
            balancer.set_health(server, health);
        }
    }

    /// A tunnel, and the address of this host's that it comes from.
    async fn connect(&self, server: &Address) -> Result<(Tunnel<TlsStream<TcpStream>>, IpAddr), Broken> {
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
        let source = stream.get_ref().0.local_addr().map_err(Broken::Unreachable)?.ip().to_canonical();
        Ok((Tunnel::connect(stream, &server.to_string()).await?, source))
    }
}

/// Waits until `source` is told to be lost; for ever if nobody tells.
async fn until_lost(source: IpAddr, mut lost: broadcast::Receiver<IpAddr>) {
    loop {
        match lost.recv().await {
            Ok(address) if address == source => return,
            // What was left unheard is settled by the tunnel's heartbeat.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::task::yield_now;

    use super::*;
    use crate::testing::{TestServer, supervisor};

    #[tokio::test]
    async fn a_tunnel_from_an_address_that_is_lost_is_connected_anew() {
        let server = TestServer::start().await;
        let registration = server.registration(Some(server.token()));
        registration.join().await.unwrap();
        let rules = reach::kubelet_alone(Ipv4Addr::LOCALHOST.into());
        let tunnels = Tunnels {
            servers: registration.balancer.servers(),
            balancer: Some(registration.balancer.clone()),
            rules: rules.subscribe(),
            lost: broadcast::Sender::new(LOST),
            supervisor: supervisor(),
            dir: registration.dir.clone(),
        };
        let connected = async || {
            while !server.seen().iter().any(|seen| seen.line == "GET /v1-k3s/connect") || !server.reaches_node() {
                yield_now().await;
            }
        };
        let story = async {
            connected().await;
            tunnels.lost.send([192, 0, 2, 7].into()).unwrap();
            assert!(server.reaches_node());
            tunnels.lost.send(Ipv4Addr::LOCALHOST.into()).unwrap();
            connected().await;
            assert_eq!(server.seen(), [], "once is enough");
        };
        tokio::select! {
            () = tunnels.run() => unreachable!("it holds them for as long as it is polled"),
            () = story => {}
        }
    }
}
