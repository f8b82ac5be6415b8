//! The forwarder: sockets around a [`Pool`].

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k3s_splice::splice;
use prometheus_client::registry::Registry;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    Address, Connection, FileError, Health, Pool,
    metrics::{DialDurations, Servers},
    state_file::StateFile,
};

/// How long a server may take to accept.
const DIAL: Duration = Duration::from_secs(10);
/// How long a connection is silent before the kernel asks whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a balancer is made from.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name in metrics, `k3s-agent-load-balancer` on an agent.
    pub name: String,
    /// The URL that the node registers at, under which the servers it learns are remembered.
    pub url: String,
    /// The same as an address, where clients go while no server is listed or can be dialled; nowhere if `None`.
    pub default: Option<Address>,
    /// Where they are remembered: `<data>/agent/etc/<name>.json`.
    pub state_file: PathBuf,
}

/// Forwards connections to the best server there is. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Balancer {
    name: Arc<str>,
    pool: Arc<Mutex<Pool>>,
    state_file: Arc<StateFile>,
    servers: watch::Sender<BTreeSet<Address>>,
    durations: DialDurations,
}

/// Counts a connection as one to its server for as long as it is held.
#[derive(Debug)]
pub struct Link {
    balancer: Balancer,
    connection: Connection,
}

/// No server could be dialled.
#[derive(Debug)]
pub struct NoServer {
    /// Each that was tried, and why it could not.
    pub tried: Vec<(Address, io::Error)>,
}

impl Balancer {
    /// A balancer that knows the registration address and the servers of its last life.
    ///
    /// # Errors
    /// The servers of the last life are in a file that cannot be read.
    pub fn new(options: Options) -> Result<Self, FileError> {
        let state_file = StateFile::new(options.state_file, options.url);
        let known = state_file.load()?;
        state_file.store(&known)?;
        let servers = if known.is_empty() { options.default.iter().cloned().collect() } else { known.clone() };
        Ok(Self {
            name: options.name.into(),
            pool: Arc::new(Mutex::new(Pool::new(options.default, known, Instant::now()))),
            state_file: Arc::new(state_file),
            servers: watch::Sender::new(servers),
            durations: DialDurations::default(),
        })
    }

    /// Makes these the listed servers, and remembers them. An empty list changes nothing.
    pub fn set_servers(&self, servers: BTreeSet<Address>) {
        if !self.pool(|pool, now| pool.set_servers(servers, now)) {
            return;
        }
        let listed = self.listed();
        self.servers.send_replace(listed.clone());
        let shown: Vec<String> = listed.iter().map(Address::to_string).collect();
        info!(servers = shown.join(","), "The load balancer has a new list of servers.");
        if let Err(error) = self.state_file.store(&listed) {
            warn!(error = %error.source, path = %error.path.display(), "The list of servers could not be stored: a restart will not know it.");
        }
    }

    /// The listed servers; without any, clients go to the registration address.
    pub fn listed(&self) -> BTreeSet<Address> {
        self.pool(|pool, _| pool.listed())
    }

    /// The listed servers as they change; the registration address while none is listed.
    pub fn servers(&self) -> watch::Receiver<BTreeSet<Address>> {
        self.servers.subscribe()
    }

    /// Tells how the tunnel to a server does. One that is in no list is passed over.
    pub fn set_health(&self, server: &Address, health: Health) {
        self.pool(|pool, now| pool.set_health(server, health, now));
    }

    /// This host has lost an address: connections from it end, so that clients connect anew.
    pub fn lost_address(&self, address: IpAddr) {
        let connections = self.pool(|pool, _| pool.lost_address(address));
        if connections > 0 {
            info!(%address, connections, "This node has lost an address; connections from it to servers are closed.");
        }
    }

    /// Shows servers, connections and dials in a registry, under k3s' names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.durations.register(registry);
        registry.register_collector(Box::new(Servers { name: self.name.clone(), pool: self.pool.clone() }));
    }

    /// Forwards what `listener` accepts until `shutdown`, which ends open connections too.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        let clients = TaskTracker::new();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((client, _)) => {
                    let (balancer, shutdown) = (self.clone(), shutdown.clone());
                    clients.spawn(async move { shutdown.run_until_cancelled(balancer.forward(client)).await });
                }
                // Out of descriptors, most likely: connections that end give them back.
                Err(error) => {
                    warn!(%error, "The load balancer could not accept a connection.");
                    shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await;
                }
            }
        }
        clients.close();
        clients.wait().await;
    }

    /// A connection to the best server there is, for requests of our own.
    ///
    /// # Errors
    /// No server accepts a connection; the error says why, for each.
    pub async fn connect(&self) -> Result<(TcpStream, Link), NoServer> {
        let mut tried = Vec::new();
        for address in self.pool(Pool::candidates) {
            let began = Instant::now();
            let dialled = timeout(DIAL, dial(&address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            self.durations.observe(&self.name, began.elapsed(), dialled.is_ok());
            match dialled {
                Ok((stream, source)) => {
                    if let Some(connection) = self.pool(|pool, now| pool.dialled(&address, source, now)) {
                        return Ok((stream, Link { balancer: self.clone(), connection }));
                    }
                }
                Err(error) => {
                    self.pool(|pool, now| pool.dial_failed(&address, now));
                    tried.push((address, error));
                }
            }
        }
        Err(NoServer { tried })
    }

    async fn forward(&self, client: TcpStream) {
        match self.connect().await {
            Ok((server, link)) => {
                // A broken connection is the client's to notice, and to open anew.
                let _ = link.over().run_until_cancelled(splice(client, server)).await;
            }
            Err(error) => debug!(%error, "A client was turned away."),
        }
    }

    fn pool<T>(&self, look: impl FnOnce(&mut Pool, Instant) -> T) -> T {
        // Nothing in there is left half done by a panic.
        look(&mut self.pool.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }
}

impl Link {
    /// Cancelled when the connection is not to be used any more.
    pub fn over(&self) -> &CancellationToken {
        self.connection.over()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.balancer.pool(|pool, _| pool.ended(&self.connection));
    }
}

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no server can be reached")?;
        for (address, error) in &self.tried {
            write!(f, "; {address}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoServer {}

/// A connection, and the address of this host's that it leaves from.
async fn dial(address: &Address) -> io::Result<(TcpStream, IpAddr)> {
    let stream = TcpStream::connect((address.host(), address.port())).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    // As routes and addresses have it, not as sockets for both families write it.
    let source = stream.local_addr()?.ip().to_canonical();
    Ok((stream, source))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use prometheus_client::encoding::text::encode_registry;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
    };

    use super::*;

    /// Answers with its name, then with what it is sent.
    async fn server(name: &'static str, shutdown: &CancellationToken) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = shutdown.clone();
        let served = tokio::spawn(async move {
            let clients = TaskTracker::new();
            while let Some(Ok((mut stream, _))) = shutdown.run_until_cancelled(listener.accept()).await {
                let shutdown = shutdown.clone();
                clients.spawn(async move {
                    stream.write_all(name.as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = shutdown.run_until_cancelled(tokio::io::copy(&mut read, &mut write)).await;
                });
            }
            drop(listener);
            clients.close();
            clients.wait().await;
        });
        (address, served)
    }

    async fn dial_in(at: SocketAddr) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut name = [0; 1];
        stream.read_exact(&mut name).await.unwrap();
        (String::from_utf8_lossy(&name).into_owned(), stream)
    }

    fn options(default: SocketAddr, folder: &tempfile::TempDir) -> Options {
        Options {
            name: "k3s-agent-load-balancer".into(),
            url: format!("https://{default}"),
            default: Some(default.into()),
            state_file: folder.path().join("state.json"),
        }
    }

    async fn serve(balancer: &Balancer, shutdown: &CancellationToken) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (balancer, shutdown) = (balancer.clone(), shutdown.clone());
        (address, tokio::spawn(async move { balancer.serve(listener, shutdown).await }))
    }

    #[tokio::test]
    async fn clients_whose_connection_comes_from_a_lost_address_connect_anew() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let (a, a_served) = server("a", &shutdown).await;
        let balancer = Balancer::new(options(a, &folder)).unwrap();
        let (at, served) = serve(&balancer, &shutdown).await;

        let (_, mut client) = dial_in(at).await;
        balancer.lost_address([192, 0, 2, 7].into());
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 1, "it was another one's");
        balancer.lost_address(Ipv4Addr::LOCALHOST.into());
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(dial_in(at).await.0, "a");

        shutdown.cancel();
        served.await.unwrap();
        a_served.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_server_answers_after_its_client_ended_arrives_however_slowly_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let (a, a_served) = server("a", &shutdown).await;
        let balancer = Balancer::new(options(a, &folder)).unwrap();
        let (at, served) = serve(&balancer, &shutdown).await;

        let (_, client) = dial_in(at).await;
        let (mut from, mut to) = client.into_split();
        let sent: Vec<u8> = (0..20_000_000_u32).map(|position| (position % 251) as u8).collect();
        let send = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let read = async {
            let (mut read, mut chunk) = (Vec::new(), vec![0; 200_000]);
            while let count @ 1.. = from.read(&mut chunk).await.unwrap() {
                read.extend_from_slice(&chunk[..count]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            read
        };
        let (read, ()) = tokio::join!(read, send);
        assert!(read == sent, "{} of {}", read.len(), sent.len());

        shutdown.cancel();
        served.await.unwrap();
        a_served.await.unwrap();
    }

    #[tokio::test]
    async fn clients_go_to_another_server_when_a_tunnel_breaks_and_the_list_outlives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let [(a, a_served), (b, b_served)] = [server("a", &shutdown).await, server("b", &shutdown).await];
        let options = options(a, &folder);
        let balancer = Balancer::new(options.clone()).unwrap();
        let (at, served) = serve(&balancer, &shutdown).await;

        let (name, mut first) = dial_in(at).await;
        assert_eq!(name, "a");
        first.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        first.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"hello");

        balancer.set_servers([a.into(), b.into()].into());
        for server in [a, b] {
            balancer.set_health(&server.into(), Health::Ok);
        }
        let (_, mut second) = dial_in(at).await;
        let mut registry = Registry::default();
        balancer.register_metrics(&mut registry);
        let mut page = String::new();
        encode_registry(&mut page, &registry).unwrap();
        assert!(page.contains("k3s_loadbalancer_server_health{name=\"k3s-agent-load-balancer\",server="), "{page}");
        assert!(page.contains("k3s_loadbalancer_dial_duration_seconds_count{"), "{page}");

        let (used, other) = if page.contains(&format!("server=\"{a}\"}} 7")) { (a, "b") } else { (b, "a") };
        balancer.set_health(&used.into(), Health::Failed);
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "its connections are closed");
        assert_eq!(dial_in(at).await.0, other);

        shutdown.cancel();
        served.await.unwrap();
        a_served.await.unwrap();
        b_served.await.unwrap();
        assert_eq!(Balancer::new(options).unwrap().listed(), [a.into(), b.into()].into());
    }
}
