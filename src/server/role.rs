//! The life of a server, from the checked configuration to the last child's end.

mod reload;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k3s_agent::NodeRole;
use k3s_components::{
    InheritedEnvironment, Launch, Package, Paths, kube_apiserver, kube_controller_manager, kube_scheduler,
};
use k3s_config::{
    ControlPlaneConfig, Role,
    addons::Addon,
    resources::Profile,
    server::{EgressMode, ServerConfig},
};
use k3s_controllers::ClusterView;
use k3s_daemon::{ConfigSource, Daemon, Reloads, STOP, SettledProfile};
use k3s_datastore::{BoundEndpoint, ClientError};
use k3s_front::{Front, KubeApiserver, Unauthenticated, serve_on_thread, serve_starting};
use k3s_listener::Limits;
use k3s_supervise::{Gate, Supervisor, notify::Notifier, status};
use k3s_tunnel::{Egress, Tunnels};
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    BootstrapError, Error, NodeDialer,
    admin_client::{AdminClient, AdminClientSender},
    agreement::SharedSettings,
    bootstrap::{self, Adopted, Credentials, Sockets},
    bootstrap_data,
    certificates::{Certificates, FrontTls},
    cluster_document,
    cluster_store::{ClusterStore, Opening},
    controllers::Controllers,
    encryption::{self, SecretsEncryption, Settings, Setup},
    host::{self, Host},
    lost_datastore,
    node_passwords::NodePasswords,
    other_api_servers::OtherApiServers,
    renewal::Renewal,
    routes::{Cluster, Reserved, Routes},
    snapshot_files::SnapshotNotices,
    snapshots::Snapshots,
    store_health,
    store_reach::StoreReach,
    token::ServerToken,
};

/// How long a program of the control plane may take to end where the datastore does not answer.
const STOP_WITHOUT_STORE: Duration = Duration::from_secs(2);

/// Runs a server until `shutdown`, or until something in this process cannot go on. A child's failure never ends it.
///
/// ```text
/// prepare: bind, room, lock ─► clock ─► datastore ─► bootstrap data ─► credentials
/// start:   kube-apiserver ─► kube-controller-manager, kube-scheduler, kube-proxy ─┐
///          containerd ─► images ─► kubelet ─► pod network ────────────────────────┴─► READY
/// drain:   front ─► children, in reverse ─► datastore
/// ```
/// Without a kube-apiserver of its own (`--disable-apiserver`) READY comes as soon as etcd serves, since the others wait for that; what is
/// after kube-apiserver waits for another server's.
///
/// # Errors
/// What has to be the server's own is taken or cannot be used, the datastore does not open or stops, or datastore and disk do not belong
/// together.
pub async fn run(
    config: ServerConfig,
    source: ConfigSource<ServerConfig>,
    package: Package,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let paths = Paths::new(&config.data_dir, Paths::RUN);
    let sockets = bootstrap::listen(&config).await?;
    host::check_room(&paths)?;
    let daemon = Daemon::prepare(Role::Server, &paths)?;
    let (notifier, supervisor) = (daemon.notifier().clone(), daemon.supervisor().clone());
    let reloads = daemon.reloads(source);
    // The large futures of a server are boxed wherever they meet.
    let life = async {
        let prepared = Box::pin(Server::prepare(config, paths, package, &supervisor, sockets, &shutdown));
        match prepared.await {
            Ok(Some((server, listeners))) => Box::pin(server.live(listeners, reloads, &notifier, &shutdown)).await,
            ended => {
                // A store that is a child runs already.
                supervisor.stop().await;
                ended.map(drop)
            }
        }
    };
    daemon.run(life, &shutdown).await
}

/// A server that is prepared: from here on only children start.
struct Server {
    config: ServerConfig,
    paths: Paths,
    package: Package,
    host: Host,
    profile: Profile,
    /// Seals what the datastore holds.
    token: Arc<ServerToken>,
    store: ClusterStore,
    supervisor: Supervisor,
    /// Other servers' kube-apiservers, where this one runs none.
    others: Option<OtherApiServers>,
    /// Tells the front how kube-apiserver does.
    kube_apiserver: watch::Sender<KubeApiserver>,
    /// Tells the front whether nodes' tunnels are to end here.
    takes_nodes: Arc<watch::Sender<bool>>,
    /// Tells this process' own users of the API that they may begin.
    admin_client: AdminClientSender,
    node_passwords: Arc<NodePasswords>,
    /// Tells the front where nodes are.
    egress: watch::Sender<Egress>,
    renewal: Arc<Renewal>,
    encryption: Arc<SecretsEncryption>,
    /// What becomes of snapshots, for the objects that tell of them.
    snapshot_notices: Arc<SnapshotNotices>,
    /// The API, for what reads a little of it now and then.
    api: AdminClient,
}

/// Sockets that are bound and not served yet.
struct Listeners {
    front: TcpListener,
    balancer: Option<TcpListener>,
    front_settings: Front,
    snapshots: UnixListener,
    datastore: Option<BoundEndpoint>,
}

/// When each listener's service ends, in this order: kube-apiserver waits for its watches, which the front holds, and hangs without the
/// datastore.
#[derive(Default)]
struct Ends {
    front: CancellationToken,
    snapshots: CancellationToken,
    datastore: CancellationToken,
}

/// Settles what this server proves itself with, between the datastore and the disk.
async fn credentials(
    config: &ServerConfig,
    paths: &Paths,
    certificates: &Certificates,
    store: &ClusterStore,
    shared: Option<&SharedSettings<'_>>,
) -> Result<Credentials, Error> {
    loop {
        let Adopted { found, token } = bootstrap::adopt(config, paths, store, shared).await?;
        let credentials = bootstrap::credentials(config, paths, certificates, &token)?;
        let setup = match (&found, config.datastore.is_shared()) {
            (None, _) => Setup::NewCluster,
            (Some(_), false) => Setup::OneServer,
            (Some(_), true) => Setup::BesideOthers,
        };
        let wanted = config.secrets_encryption.then_some(config.encryption_provider);
        encryption::ensure(&paths.server(), wanted, setup)?;
        let data = bootstrap_data::from_disk(&paths.server())?;
        match bootstrap_data::save(&store.client(), &credentials.token, data, found).await {
            Err(BootstrapError::Datastore(ClientError::Changed(_))) => {
                info!("Another server has stored something else of the cluster meanwhile; starting from that.");
            }
            saved => {
                saved?;
                return Ok(credentials);
            }
        }
    }
}

/// What is known of nodes before the API tells: this server's own.
fn own_egress(config: &ServerConfig, host: &Host) -> Egress {
    Egress::new(config.node.is_some().then(|| host.name.clone()), config.reached_at())
}

impl Server {
    /// `None` if `shutdown` came while something was waited for.
    async fn prepare(
        mut config: ServerConfig,
        paths: Paths,
        package: Package,
        supervisor: &Supervisor,
        sockets: Sockets,
        shutdown: &CancellationToken,
    ) -> Result<Option<(Self, Listeners)>, Error> {
        config.node.as_ref().map_or(Ok(()), k3s_agent::check_registries)?;
        let snapshots = status::bind(&paths.snapshot_socket()).map_err(Error::file(paths.snapshot_socket()))?;
        lost_datastore::check_file(&config.datastore, &paths)?;
        let host = Host::of(&mut config).await?;
        let profile = SettledProfile::of(config.resource_profile);
        profile.tell(supervisor);
        let certificates = Certificates::new(&config, &paths, &host)?;
        let others = OtherApiServers::of(&config, &paths)?;
        let Sockets { front, balancer } = sockets;
        let (egress, known) = watch::channel(own_egress(&config, &host));
        let gate = supervisor.gate("datastore")?;
        let opening = Opening {
            config: &config,
            paths: &paths,
            host: &host,
            certificates: &certificates,
            components: &package.components,
            supervisor,
            gate: &gate,
            version: package.version,
        };
        let open = ClusterStore::open(opening, shutdown);
        let tls = bootstrap::tls_policy(&config.args.kube_apiserver);
        let opened = match bootstrap::last_certificate(&paths) {
            Some(certificate) => serve_starting(&front, certificate, &tls, open).await?,
            // At the first start clients wait in line: there is no authority yet that they could believe.
            None => open.await?,
        };
        let Some(store) = opened else { return Ok(None) };
        let prepared = async {
            let settings = cluster_document::published(&config, &paths, &host, package.version)?;
            let shared = store.elsewhere().map(|client| SharedSettings::new(client, &host.name, &settings));
            let Credentials { pki, token } =
                credentials(&config, &paths, &certificates, &store, shared.as_ref()).await?;
            if let Some(shared) = &shared {
                shared.publish().await?;
            }
            let pki = Arc::new(pki);
            let shown = certificates.front_tls(&pki, SystemTime::now())?;
            // Where there is no kube-apiserver, none has to be started again for its certificate.
            let egress_mode = if others.is_some() { EgressMode::Disabled } else { config.egress_mode };
            let renewal = Renewal::new(certificates, &shown, &pki, &paths, supervisor, egress_mode)?;
            let FrontTls { certificate, client_ca, upstream, .. } = shown;
            let begins_as = if others.is_some() { KubeApiserver::Disabled } else { KubeApiserver::Starting };
            let (kube_apiserver, told) = watch::channel(begins_as);
            let token = Arc::new(ServerToken::new(
                paths.server(),
                pki.server_ca.bundle().to_vec(),
                config.agent_token.is_some(),
                store.client(),
                token,
            ));
            let encryption = Arc::new(SecretsEncryption::new(Settings::of(&config, &paths, &host), token.clone()));
            let (admin_client_sender, admin_client) = AdminClient::pending();
            let own_node = bootstrap::own_node(&config, &paths, &host)?;
            let node_passwords = Arc::new(NodePasswords::new(admin_client.clone(), own_node));
            let reserved = Reserved::of(&config, &host, &pki);
            let (takes_nodes, nodes_taken) = watch::channel(true);
            let routes = Routes::new(Cluster {
                server_dir: paths.server(),
                charts: package.charts.clone(),
                pki,
                admin_client: admin_client.clone(),
                node_passwords: node_passwords.clone(),
                reserved,
                token: token.clone(),
                encryption: encryption.clone(),
                dialer: NodeDialer { tunnels: Tunnels::default(), egress: known },
                takes_nodes: nodes_taken,
                etcd: store.member().cloned(),
                others: others.as_ref().map(OtherApiServers::servers),
                config: cluster_document::published(&config, &paths, &host, package.version)?,
            });
            let metrics = config.supervisor_metrics.then(|| {
                let mut registry = Registry::default();
                store.register_metrics(&mut registry);
                registry
            });
            let unauthenticated = Unauthenticated::with(&config.args.kube_apiserver);
            let front_settings = Front {
                certificate,
                tls,
                client_ca,
                limits: Limits::of_process(),
                upstream,
                unauthenticated,
                kube_apiserver: told,
                service: Arc::new(routes),
                metrics,
            };
            let listeners =
                Listeners { front, balancer, front_settings, snapshots, datastore: store.bind(&paths).await? };
            let api = (admin_client_sender, admin_client);
            let told = (kube_apiserver, Arc::new(takes_nodes));
            Ok((token, encryption, told, api, node_passwords, Arc::new(renewal), listeners))
        };
        match shutdown.run_until_cancelled(prepared).await {
            Some(Ok((token, encryption, told, (admin_client, api), node_passwords, renewal, listeners))) => {
                let (kube_apiserver, takes_nodes) = told;
                let server = Self {
                    config,
                    paths,
                    package,
                    host,
                    profile: profile.profile,
                    token,
                    store,
                    supervisor: supervisor.clone(),
                    others,
                    kube_apiserver,
                    takes_nodes,
                    admin_client,
                    node_passwords,
                    egress,
                    renewal,
                    encryption,
                    snapshot_notices: Arc::default(),
                    api,
                };
                Ok(Some((server, listeners)))
            }
            Some(Err(error)) => {
                // What is wrong with the start is the error to report.
                let _ = store.close().await;
                Err(error)
            }
            None => store.close().await.map(|()| None),
        }
    }

    /// Runs until `shutdown`, or until it cannot go on; everything has ended when it returns.
    async fn live(
        self,
        listeners: Listeners,
        reloads: Reloads<ServerConfig>,
        notifier: &Notifier,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let ends = Ends::default();
        let work = async {
            let ended = Box::pin(self.work(reloads, notifier, shutdown)).await;
            if let Err(error) = &ended {
                error!(%error, "The server cannot go on and stops.");
            }
            self.drain(notifier, &ends).await;
            ended
        };
        let (ended, served) = tokio::join!(work, Box::pin(self.serve(listeners, &ends)));
        let closed = self.store.close().await;
        ended.and(served).and(closed)
    }

    /// Serves clients, kube-apiserver and requests for snapshots until each one's end.
    async fn serve(&self, listeners: Listeners, ends: &Ends) -> Result<(), Error> {
        let Listeners { front, balancer, front_settings, snapshots: asked, datastore } = listeners;
        let snapshots = Snapshots {
            source: self.store.snapshot_source(),
            config: &self.config.snapshots,
            data_dir: &self.config.data_dir,
            node: &self.host.name,
            token: self.token.password(),
            version: self.package.version,
            notices: self.snapshot_notices.clone(),
            api: Some(self.api.clone()),
        };
        let balance = async {
            if let (Some(others), Some(balancer)) = (&self.others, balancer) {
                others.serve(balancer, ends.datastore.clone()).await;
            }
        };
        let ((), (), (), (), stored) = tokio::join!(
            balance,
            serve_on_thread(front, front_settings, ends.front.clone()),
            snapshots.serve(asked, ends.snapshots.clone()),
            snapshots.follow_schedule(ends.snapshots.clone()),
            self.store.serve(datastore, ends.datastore.clone()),
        );
        stored
    }

    /// Starts everything and does what this process itself has to do, until `shutdown` or until it cannot go on.
    async fn work(
        &self,
        reloads: Reloads<ServerConfig>,
        notifier: &Notifier,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let work = async {
            self.supervisor.gate("datastore")?.open();
            // What is after kube-apiserver is after this gate, where there is no such program.
            let elsewhere = self.others.as_ref().map(|_| self.supervisor.gate("kube-apiserver")).transpose()?;
            let control_plane = self.control_plane(&self.config);
            control_plane.iter().try_for_each(Launch::install_files)?;
            self.supervisor.start(control_plane.into_iter().map(|launch| launch.program))?;
            let kubeconfig = self.paths.cred("supervisor.kubeconfig");
            let client = k3s_agent::lasting_client(kubeconfig, self.renewal.renewed()).await?;
            let view = ClusterView::of_server(client.clone());
            let addresses = watch::Sender::new(self.host.ips.clone());
            let in_process = async {
                tokio::join!(
                    Box::pin(self.control(client, &view, shutdown)),
                    Box::pin(self.renew(&addresses, shutdown)),
                    Box::pin(self.watch_member(&view, shutdown)),
                    Box::pin(self.watch_store(&view, shutdown)),
                    Box::pin(self.follow_others(elsewhere, shutdown)),
                );
                view.close().await;
                Ok(())
            };
            let node = self.run_node(&view, reloads, shutdown);
            let moving =
                async { k3s_agent::follow_own_addresses(&self.config.ips, &addresses).await.map_err(Error::from) };
            let until_shutdown = async {
                let (node, moving) = (Box::pin(node), Box::pin(moving));
                let work = async { tokio::try_join!(self.announce(notifier), node, moving) };
                tokio::select! {
                    Err(error) = work => Err(error),
                    () = shutdown.cancelled() => Ok(()),
                }
            };
            // Controllers end by themselves: what they hold is given back.
            tokio::try_join!(until_shutdown, in_process).map(drop)
        };
        tokio::select! {
            ended = work => ended,
            stopped = self.store.stopped() => Err(stopped),
        }
    }

    /// Runs the controllers of this process.
    async fn control(&self, client: Client, view: &ClusterView, shutdown: &CancellationToken) {
        let controllers = Controllers {
            plane: self.plane(&self.config),
            addons: &self.config.addons,
            snapshots: &self.config.snapshots,
            snapshot_notices: &self.snapshot_notices,
            own_node: self.config.node.is_some().then(|| self.host.name.clone()),
            paths: &self.paths,
            host: &self.host,
            supervisor: &self.supervisor,
            package: &self.package,
            client,
            view,
            admin_client: &self.admin_client,
            node_passwords: &self.node_passwords,
            store: self.store.client(),
            member: self.store.member(),
            balancer: self.others.as_ref().map(|others| others.balancer().clone()),
            renewal: &self.renewal,
            encryption: &self.encryption,
            egress: &self.egress,
        };
        controllers.run(shutdown).await;
    }

    /// Looks after this server's member of etcd, where it is one.
    async fn watch_member(&self, view: &ClusterView, shutdown: &CancellationToken) {
        let Some(member) = self.store.member() else { return };
        let task = self.supervisor.task("etcd-member");
        task.run(shutdown, |line| member.clone().watch(self.supervisor.clone(), line, self.store_reach(view))).await;
    }

    /// Tells how a store elsewhere does.
    async fn watch_store(&self, view: &ClusterView, shutdown: &CancellationToken) {
        let Some(store) = self.store.remote(&self.supervisor) else { return };
        let task = self.supervisor.task("datastore");
        task.run(shutdown, |line| store_health::watch(store.clone(), line, self.store_reach(view))).await;
    }

    /// Leads to other servers' kube-apiservers, where this one runs none; `gate` opens when one of them answers.
    async fn follow_others(&self, gate: Option<Gate>, shutdown: &CancellationToken) {
        let (Some(others), Some(gate)) = (&self.others, gate) else { return };
        let task = self.supervisor.task("api-servers");
        let follow = task.run(shutdown, |line| {
            let (others, etcd) = (others.clone(), self.store.client());
            async move { others.follow(etcd, line).await }
        });
        let own = (self.host.advertised(self.config.published_at()), self.config.https_listen_port);
        let open = others.open(&gate, self.paths.cred("supervisor.kubeconfig"), own);
        tokio::join!(follow, shutdown.run_until_cancelled(open));
    }

    fn store_reach(&self, view: &ClusterView) -> StoreReach {
        StoreReach::new(view.api_endpoints(), self.takes_nodes.clone())
    }

    /// Keeps certificates fresh, and right for the addresses that the machine has.
    async fn renew(&self, addresses: &watch::Sender<Vec<IpAddr>>, shutdown: &CancellationToken) {
        let task = self.supervisor.task("certificates");
        task.run_always(shutdown, || {
            let (renewal, ips) = (self.renewal.clone(), addresses.subscribe());
            async move { renewal.run(ips).await }
        })
        .await;
    }

    /// Lets requests through to kube-apiserver once it is ready, and says READY once everything is.
    async fn announce(&self, notifier: &Notifier) -> Result<(), Error> {
        // Other servers wait for etcd, and this one for them.
        if self.others.is_some() {
            notifier.ready();
            info!("etcd is served; kube-apiserver is other servers'.");
        } else if self.supervisor.ready("kube-apiserver").await.is_ok() {
            self.kube_apiserver.send_replace(KubeApiserver::Ready);
            info!(port = self.config.https_listen_port, "The Kubernetes API is served.");
        }
        if self.supervisor.all_ready().await.is_ok() {
            if self.others.is_none() {
                notifier.ready();
            }
            info!("All components are ready.");
        }
        Ok(())
    }

    async fn drain(&self, notifier: &Notifier, ends: &Ends) {
        notifier.stopping();
        notifier.extend_timeout(STOP);
        if self.config.node.is_some() {
            // While the API answers.
            k3s_agent::end_pods_with_host(&self.paths, &self.host.name, &self.supervisor, notifier).await;
            notifier.extend_timeout(STOP);
        }
        ends.front.cancel();
        if !self.store.answers().await {
            self.hasten_stop().await;
        }
        self.supervisor.stop().await;
        ends.snapshots.cancel();
        ends.datastore.cancel();
    }

    /// Has the control plane wait for nothing that needs the datastore: requests under way come to nothing.
    async fn hasten_stop(&self) {
        info!("The datastore does not answer: what is under way is not waited for.");
        for Launch { mut program, .. } in self.control_plane(&self.config) {
            program.stop.timeout = program.stop.timeout.min(STOP_WITHOUT_STORE);
            // One that was never started has nothing to end.
            let _ = self.supervisor.amend(program).await;
        }
    }

    /// What the control plane goes by, as `config` wants it.
    fn plane<'a>(&self, config: &'a ServerConfig) -> ControlPlaneConfig<'a> {
        config.control_plane(self.host.advertised(config.published_at()), self.profile)
    }

    /// Its programs.
    fn control_plane(&self, config: &ServerConfig) -> Vec<Launch> {
        let (paths, components) = (&self.paths, &self.package.components);
        let plane = self.plane(config);
        let mut launches = Vec::new();
        if !plane.disabled.apiserver {
            launches.push(kube_apiserver(plane, paths, components));
        }
        if !plane.disabled.controller_manager {
            launches.push(kube_controller_manager(plane, paths, components));
        }
        if !plane.disabled.scheduler {
            launches.push(kube_scheduler(plane, paths, components));
        }
        // kube-apiserver reaches this node's kubelet by its address.
        let inherited = InheritedEnvironment::new(std::env::vars_os(), &config.network, &self.host.ips);
        launches.iter_mut().for_each(|launch| inherited.adapt(&mut launch.program));
        launches
    }

    /// The node that this server also is, as `config` wants it.
    async fn prepare_node(&self, config: &ServerConfig, view: &ClusterView) -> Result<Option<NodeRole>, Error> {
        let Some(node) = &config.node else { return Ok(None) };
        let role = NodeRole::prepare(k3s_agent::Request {
            config: node.clone(),
            network: config.network.clone(),
            ips: self.host.ips.clone(),
            paths: self.paths.clone(),
            components: self.package.components.clone(),
            packaged_images: self.package.images.clone(),
            service_lb: config.addons.has(Addon::Servicelb),
            system_default_registry: config.addons.system_default_registry.clone(),
            kube_proxy: !config.disabled.kube_proxy,
            network_policy: !config.disabled.network_policy,
            cloud_controller: !config.disabled.cloud_controller,
            // This server dials its own pods; others reach them through its tunnels.
            pod_egress: config.datastore.is_shared() && config.egress_mode.includes_pods(),
            profile: self.profile,
            verbosity: config.verbosity,
            shim_cgroup: self.supervisor.survivors_cgroup(),
            view: view.clone(),
            renewed: self.renewal.renewed(),
        })
        .await?;
        Ok(Some(role))
    }
}
