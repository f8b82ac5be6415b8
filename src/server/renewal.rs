//! Certificates renewed while the server runs, in place: what is due at a start is due in between too.
//!
//! Twice a day the same is done that a start does: each leaf with a third of its life left or less is issued again, for the key that it
//! has; and at once when the machine's address changes, so that what serves has a certificate for the new one. Most of those who hold a
//! certificate read it anew by themselves: kube-apiserver, kubelet, every client of client-go and of etcd's. The others:
//!
//! ```text
//! the front's certificate, and its client certificate ──► shown from the next handshake on
//! our own clients of the API                           ──► go on by the new files: `renewed` tells
//! kube-apiserver's way into the tunnels                ──► kube-apiserver is started again
//! ```

use std::{
    collections::BTreeSet,
    future::pending,
    net::IpAddr,
    panic::resume_unwind,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k3s_agent::Renewed;
use k3s_components::Paths;
use k3s_config::server::EgressMode;
use k3s_files::FileError;
use k3s_pki::{AgentPki, CurrentCertificate, San, ServerPki, ServingSecret, renewal::renew_before};
use k3s_supervise::Supervisor;
use tokio::{
    sync::{Mutex, watch},
    task::spawn_blocking,
    time::sleep,
};
use tracing::{error, info};

use crate::{
    Error,
    certificates::{Certificates, FrontTls},
};

/// How often it is looked: a certificate of a year that is due has months left.
const INTERVAL: Duration = Duration::from_secs(12 * 3600);

/// Renews the certificates of one server.
pub(crate) struct Renewal {
    certificates: Certificates,
    paths: Paths,
    /// Told of what fails; it restarts who holds an old certificate.
    supervisor: Supervisor,
    /// Whether kube-apiserver holds a certificate for tunnels.
    egress_mode: EgressMode,
    /// The newest. Who holds it writes certificates.
    pki: Mutex<Arc<ServerPki>>,
    /// What the front shows its clients.
    front: Arc<CurrentCertificate>,
    /// What that is valid for.
    front_names: watch::Sender<BTreeSet<San>>,
    /// What it shows kube-apiserver.
    proxy: Arc<CurrentCertificate>,
    /// What the others began with.
    held: ClientCertificates,
    /// Changes whenever our own clients of the API have new certificates.
    renewed: watch::Sender<()>,
    interval: Duration,
}

/// The certificates whose holders do not look for new ones, as they were last told of them.
#[derive(Clone, PartialEq, Eq)]
struct ClientCertificates {
    /// `client-supervisor`, and the node's `client-kubelet` and `client-k3s-controller`: our own clients'.
    clients: [Option<Vec<u8>>; 3],
    /// `client-kube-apiserver`: kube-apiserver's for the tunnels.
    kube_apiserver: Option<Vec<u8>>,
}

impl Renewal {
    /// Of `certificates`, from what the front uses of them and what is in place before anything else starts.
    pub(crate) fn new(
        certificates: Certificates,
        tls: &FrontTls,
        pki: &Arc<ServerPki>,
        paths: &Paths,
        supervisor: &Supervisor,
        egress_mode: EgressMode,
    ) -> Result<Self, Error> {
        // Twice while a short-lived certificate is due.
        let due = Duration::try_from(renew_before(pki.server_ca.lifetime())).unwrap_or_default();
        Ok(Self {
            certificates,
            paths: paths.clone(),
            supervisor: supervisor.clone(),
            egress_mode,
            pki: Mutex::new(pki.clone()),
            front: tls.certificate.clone(),
            front_names: watch::Sender::new(tls.names.clone()),
            proxy: tls.upstream.proxy_certificate.clone(),
            held: ClientCertificates::read(paths)?,
            renewed: watch::Sender::new(()),
            interval: INTERVAL.min(due / 2),
        })
    }

    /// Told whenever our own clients of the API have new certificates.
    pub(crate) fn renewed(&self) -> Renewed {
        self.renewed.subscribe()
    }

    /// The names on the front's certificate, as they change.
    pub(crate) fn front_names(&self) -> watch::Receiver<BTreeSet<San>> {
        self.front_names.subscribe()
    }

    /// Has the front shown by these names too, and returns what it shows from the next handshake on.
    pub(crate) async fn name_front(&self, names: BTreeSet<San>) -> Result<ServingSecret, Error> {
        let current = self.pki.lock().await;
        let (pki, names) = (current.clone(), Vec::from_iter(names));
        let front = on_disk(move || Ok(pki.front_certificate(&names, SystemTime::now())?)).await?;
        self.front.take_over(&CurrentCertificate::new(front.certified_key()));
        self.tell_names(front.names());
        Ok(front.secret())
    }

    fn tell_names(&self, names: &BTreeSet<San>) {
        self.front_names.send_if_modified(|told| {
            let changed = told != names;
            told.clone_from(names);
            changed
        });
    }

    /// Renews what is due and what lacks one of `ips`, the machine's addresses, for as long as it is polled. What fails is told, and tried
    /// again the next time.
    pub(crate) async fn run(&self, mut ips: watch::Receiver<Vec<IpAddr>>) {
        let mut held = self.held.clone();
        let mut certificates = self.certificates.moved_to(&ips.borrow_and_update());
        loop {
            tokio::select! {
                () = sleep(self.interval) => {}
                Ok(()) = ips.changed() => {
                    let now = ips.borrow_and_update().clone();
                    info!(addresses = ?now, "This server has moved to another address, for which it takes certificates.");
                    certificates = self.certificates.moved_to(&now);
                }
            }
            let renewed = async {
                let pki = self.renew(&certificates, &mut held, SystemTime::now()).await?;
                let certificates = certificates.clone();
                on_disk(move || certificates.write_kubeconfig(&pki)).await
            };
            match renewed.await {
                Ok(()) => self.supervisor.clear("certificates"),
                Err(error) => {
                    error!(%error, again_in = ?self.interval, "The certificates cannot be renewed.");
                    self.supervisor.warn("certificates", format!("The certificates cannot be renewed: {error}."));
                }
            }
        }
    }

    async fn renew(
        &self,
        certificates: &Certificates,
        held: &mut ClientCertificates,
        now: SystemTime,
    ) -> Result<Arc<ServerPki>, Error> {
        let mut current = self.pki.lock().await;
        let (pki, FrontTls { certificate, names, upstream, .. }, clients) = {
            let (certificates, paths) = (certificates.clone(), self.paths.clone());
            on_disk(move || {
                let pki = certificates.ensure(now)?;
                let tls = certificates.front_tls(&pki, now)?;
                Ok((pki, tls, ClientCertificates::read(&paths)?))
            })
            .await?
        };
        let pki = Arc::new(pki);
        current.clone_from(&pki);
        drop(current);
        self.front.take_over(&certificate);
        self.tell_names(&names);
        self.proxy.take_over(&upstream.proxy_certificate);
        let before = std::mem::replace(held, clients);
        if before.clients != held.clients {
            self.renewed.send_replace(());
        }
        if before.kube_apiserver != held.kube_apiserver && self.egress_mode != EgressMode::Disabled {
            info!("kube-apiserver reads its certificate for the tunnels at its start only, and is started again.");
            // It is not there only if the server stops.
            let _ = self.supervisor.restart("kube-apiserver").await;
        }
        Ok(pki)
    }
}

/// Signing takes the processor, and writing waits for the disk: on a thread where nobody else waits for them.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends.
            Err(_) => pending().await,
        },
    }
}

impl ClientCertificates {
    fn read(paths: &Paths) -> Result<Self, FileError> {
        let node = AgentPki::at(&paths.agent());
        let [supervisor, kube_apiserver] =
            ["client-supervisor.crt", "client-kube-apiserver.crt"].map(|name| paths.tls(name));
        let clients = [&supervisor, &node.client_kubelet.certificate, &node.client_k3s_controller.certificate];
        let [first, second, third] = clients.map(|path| k3s_files::read(path));
        Ok(Self { clients: [first?, second?, third?], kube_apiserver: k3s_files::read(&kube_apiserver)? })
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, fs, net::Ipv4Addr};

    use http::{Request, Response, StatusCode};
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use k3s_config::server::ServerConfig;
    use k3s_pki::{
        AgentRequest, AnyClientCertificate, Certificate, ClientCa, FrontCertificate, Lifetime, San, ServerRequest,
    };
    use rustls::{ServerConfig as TlsConfig, crypto::aws_lc_rs::default_provider, sign::SingleCertAndKey};
    use tokio::{net::TcpListener, task::JoinSet};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{
        host::Host,
        testing::{config, supervisor},
    };

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// A server and its node, of which only the certificates are there.
    struct Server {
        config: ServerConfig,
        paths: Paths,
        host: Host,
        supervisor: Supervisor,
        _dir: tempfile::TempDir,
    }

    impl Server {
        fn new(flags: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let data_dir = format!("--data-dir={}", dir.path().display());
            let args = flags.iter().copied().chain([data_dir.as_str()]);
            Self {
                config: config("edge", args),
                paths: Paths::new(dir.path(), dir.path().join("run")),
                host: Host { name: "edge".into(), ips: vec![ADDRESS], hostname: "edge".into() },
                supervisor: supervisor(),
                _dir: dir,
            }
        }

        fn certificates(&self) -> Certificates {
            Certificates::new(&self.config, &self.paths, &self.host).unwrap()
        }

        fn renewal(&self, pki: &Arc<ServerPki>, now: SystemTime) -> (Renewal, FrontTls, ClientCertificates) {
            let (certificates, egress_mode) = (self.certificates(), self.config.egress_mode);
            let tls = certificates.front_tls(pki, now).unwrap();
            let renewal = Renewal::new(certificates, &tls, pki, &self.paths, &self.supervisor, egress_mode).unwrap();
            let held = renewal.held.clone();
            (renewal, tls, held)
        }

        async fn renew(&self, renewal: &Renewal, held: &mut ClientCertificates, now: SystemTime) {
            renewal.renew(&self.certificates(), held, now).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_due_is_renewed_and_taken_over_and_the_keys_stay() {
        let server = Server::new(&[]);
        let paths = &server.paths;
        let files = ["client-supervisor.crt", "client-supervisor.key", "dynamic-cert.json"];
        let read = || files.map(|name| fs::read(paths.tls(name)).unwrap());

        let begin = SystemTime::now();
        let pki = Arc::new(server.certificates().ensure(begin).unwrap());
        let (renewal, tls, mut held) = server.renewal(&pki, begin);
        let mut renewed = renewal.renewed();
        let (first, shown) = (read(), format!("{:?}", tls.certificate));

        server.renew(&renewal, &mut held, begin + 240 * DAY).await;
        assert!(read() == first && !renewed.has_changed().unwrap(), "at two thirds, not before");
        server.renew(&renewal, &mut held, begin + 246 * DAY).await;
        let second = read();
        assert!(second[0] != first[0] && second[1] == first[1] && second[2] != first[2]);
        assert!(renewed.has_changed().unwrap());
        assert_ne!(format!("{:?}", tls.certificate), shown, "the front shows the new one");

        renewed.mark_unchanged();
        server.renew(&renewal, &mut held, begin + 247 * DAY).await;
        assert!(!renewed.has_changed().unwrap(), "there is nothing new");
        // An attempt that broke off half-way has told nobody.
        fs::remove_file(&AgentPki::at(&paths.agent()).client_kubelet.certificate).unwrap();
        server.certificates().ensure(begin + 248 * DAY).unwrap();
        server.renew(&renewal, &mut held, begin + 248 * DAY).await;
        assert!(renewed.has_changed().unwrap(), "the node's own counts too");
    }

    #[tokio::test]
    async fn a_server_that_moves_has_certificates_for_its_new_address() {
        let mut server = Server::new(&[]);
        let now = SystemTime::now();
        let pki = Arc::new(server.certificates().ensure(now).unwrap());
        let (renewal, tls, mut held) = server.renewal(&pki, now);
        let shown = format!("{:?}", tls.certificate);
        let moved = IpAddr::from([192, 0, 2, 2]);
        server.host = server.host.moved_to(&[moved]);
        assert_eq!(server.host.advertised(server.config.published_at()), moved);
        server.renew(&renewal, &mut held, now).await;

        let paths = &server.paths;
        for path in [paths.tls("serving-kube-apiserver.crt"), paths.agent().join("serving-kubelet.crt")] {
            let certificate = Certificate::first_of(&fs::read(&path).unwrap()).unwrap();
            // kube-apiserver dials kubelet by the address that its node still has in the API.
            for ip in [moved, ADDRESS] {
                assert!(certificate.sans.contains(&San::Ip(ip)), "{} lacks {ip}", path.display());
            }
        }
        let front = FrontCertificate::last(&paths.server()).unwrap();
        let names = Certificate::parse(&front.chain()[0]).unwrap().sans;
        assert!(names.contains(&San::Ip(moved)) && names.contains(&San::Ip(ADDRESS)));
        assert_ne!(format!("{:?}", tls.certificate), shown);
    }

    #[tokio::test]
    async fn names_of_other_servers_are_shown_and_stay() {
        let server = Server::new(&[]);
        let now = SystemTime::now();
        let pki = Arc::new(server.certificates().ensure(now).unwrap());
        let (renewal, tls, mut held) = server.renewal(&pki, now);
        let (shown, mut told) = (format!("{:?}", tls.certificate), renewal.front_names());
        let name: San = "register.example".parse().unwrap();

        let secret = renewal.name_front([name.clone()].into()).await.unwrap().into_json();
        assert_eq!(secret["metadata"]["annotations"]["listener.cattle.io/cn-register.example"], "register.example");
        assert_ne!(format!("{:?}", tls.certificate), shown);
        assert!(told.has_changed().unwrap() && told.borrow_and_update().contains(&name));
        server.renew(&renewal, &mut held, now + 246 * DAY).await;
        assert!(told.borrow().contains(&name) && !told.has_changed().unwrap());
    }

    /// Answers as kube-apiserver does: a certificate may end while its connection stands.
    async fn serve_api(listener: TcpListener, tls: TlsAcceptor, client_ca: Arc<ClientCa>) {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, client_ca) = (tls.clone(), client_ca.clone());
            connections.spawn(async move {
                let stream = tls.accept(stream).await.unwrap();
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                let answer = service_fn(async |_: Request<Incoming>| {
                    let mut response = Response::new(String::new());
                    if client_ca.verify(&chain, SystemTime::now()).is_err() {
                        *response.status_mut() = StatusCode::UNAUTHORIZED;
                    }
                    Ok::<_, Infallible>(response)
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    #[tokio::test]
    async fn clients_of_the_api_outlive_their_certificates() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server::new(&[&format!("--https-listen-port={}", port - 1)]);
        let now = SystemTime::now();

        // Certificates of a day, which has passed.
        let begin = now - 30 * HOUR;
        let request = ServerRequest {
            node_name: "edge".parse().unwrap(),
            node_ips: vec![ADDRESS],
            apiserver_port: port,
            lifetime: Lifetime::of_days(1.try_into().unwrap()),
            ..ServerRequest::example(begin)
        };
        let pki = Arc::new(ServerPki::ensure(&server.paths.server(), &request).unwrap());
        let node = AgentRequest {
            node_name: "edge".parse().unwrap(),
            node_ips: vec![ADDRESS],
            apiserver: pki.apiserver_url(),
            now: begin,
        };
        let node = AgentPki::ensure(&server.paths.agent(), &node, &pki).unwrap();
        let (renewal, _tls, mut held) = server.renewal(&pki, now);
        assert_eq!(renewal.interval, 4 * HOUR, "looked at while they are due");

        let shown = pki.front_certificate(&[], now).unwrap().certified_key();
        let tls = TlsConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(AnyClientCertificate::verifier())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        let client_ca = Arc::new(ClientCa::new(pki.client_ca.bundle()).unwrap());
        let _api = JoinSet::from_iter([serve_api(listener, TlsAcceptor::from(Arc::new(tls)), client_ca)]);

        let mut clients = Vec::new();
        for kubeconfig in [&pki.kubeconfigs.supervisor, &node.kubelet_kubeconfig, &node.k3s_controller_kubeconfig] {
            clients.push(k3s_agent::lasting_client(kubeconfig, renewal.renewed()).await.unwrap());
        }
        let ask =
            async |client: &kube::Client| client.request_text(Request::get("/version").body(Vec::new()).unwrap()).await;
        for client in &clients {
            assert!(ask(client).await.is_err(), "its certificate has ended");
        }
        server.renew(&renewal, &mut held, now).await;
        for client in &clients {
            ask(client).await.unwrap();
        }
    }
}
