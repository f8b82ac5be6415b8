//! The life of a server, from the checked configuration to the last child's end.

use std::{path::PathBuf, time::Duration};

use k3s_agent::NodeRole;
use k3s_components::{Components, Paths, kube_apiserver, kube_controller_manager, kube_scheduler};
use k3s_config::server::{Datastore as DatastoreConfig, ServerConfig};
use k3s_datastore::{Datastore, Endpoint, Options as DatastoreOptions};
use k3s_supervise::{
    Options, Supervisor, cgroup::CgroupPlace, log::Target, notify::Notifier, program::Program, status,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    Error,
    bootstrap::{self, Host},
    controllers,
    front::{self, Front},
    routes::Routes,
};

/// Sockets and whatever else a boot may lose.
const RUN: &str = "/run/k3s";
/// How long the service manager is asked to bear with a stop.
const STOP: Duration = Duration::from_secs(90);

/// What comes with this program.
#[derive(Debug, Clone)]
pub struct Package {
    /// The upstream programs that this role needs, all found.
    pub components: Components,
    /// The folder of image archives, where there is one.
    pub images: Option<PathBuf>,
}

/// Runs a server until `shutdown`, or until something in this process cannot go on. A child's failure never ends it.
///
/// ```text
/// bind, lock ─► credentials ─► datastore ─► kube-apiserver ─► controllers, scheduler, kube-proxy ─┐
///                        └───► containerd ─► images ─► kubelet ─► pod network ────────────────────┴─► READY ─► drain
/// ```
pub async fn run(mut config: ServerConfig, package: Package, shutdown: CancellationToken) -> Result<(), Error> {
    let paths = Paths::new(&config.data_dir, RUN);
    let notifier = Notifier::from_env()?;
    let listener = bootstrap::listen(&config).await?;
    let _lock = bootstrap::lock(&paths)?;
    let status_socket = status::bind(&paths.status_socket()).map_err(Error::file(paths.status_socket()))?;
    let host = Host::of(&mut config, &paths).await?;
    let pki = bootstrap::credentials(&config, &paths, &host)?;
    let (certificate, client_ca, upstream) = bootstrap::front_tls(&config, &pki)?;

    let DatastoreConfig::Sqlite { path } = &config.datastore;
    let datastore = Datastore::open(DatastoreOptions::new(path)).await?;
    let socket = Endpoint::Unix(paths.datastore_socket()).bind().await?;
    let supervisor = Supervisor::new(Options {
        run_dir: paths.run().to_path_buf(),
        log: Target::detect(),
        cgroups: CgroupPlace::default(),
    })
    .map_err(Error::Thread)?;
    supervisor.gate("datastore")?.open();
    supervisor.start(control_plane(&config, &paths, &package.components, &host))?;

    let (api_ready, ready) = watch::channel(false);
    let front = Front { certificate, client_ca, upstream, ready, routes: Routes::new(&paths.server()) };
    // On stop the front goes first: kube-apiserver waits for its watches to end. The datastore goes last: kube-apiserver hangs without.
    let fronting = CancellationToken::new();
    let telling = CancellationToken::new();
    let storing = CancellationToken::new();
    let servers = async {
        tokio::join!(
            front::serve(listener, front, fronting.clone()),
            status::serve(status_socket, supervisor.clone(), telling.clone()),
            notifier.follow(supervisor.subscribe(), telling.clone()),
            notifier.watchdog(&supervisor, telling.clone()),
        )
    };
    let work = async {
        let node = match config.node.clone() {
            Some(node) => Some(start_node(node, &config, &paths, &package, &host, &supervisor).await?),
            None => None,
        };
        let announced = async {
            if supervisor.ready("kube-apiserver").await.is_ok() {
                // The receiver lives as long as the front.
                let _ = api_ready.send(true);
                info!(port = config.https_listen_port, "The Kubernetes API is served.");
            }
            if supervisor.all_ready().await.is_ok() {
                notifier.ready();
                info!("All components are ready.");
            }
            Ok(())
        };
        let on_node = async {
            match &node {
                Some(node) => node.run(&supervisor, shutdown.clone()).await.map_err(Error::from),
                None => Ok(()),
            }
        };
        let controlling = controllers::run(&config, &paths, &host, &supervisor, shutdown.clone());
        tokio::try_join!(announced, on_node, controlling).map(drop)?;
        shutdown.cancelled().await;
        Ok(())
    };
    let life = async {
        let ended = tokio::select! {
            ended = work => ended,
            () = shutdown.cancelled() => Ok(()),
            stopped = datastore.stopped() => Err(Error::Datastore(stopped)),
        };
        if let Err(error) = &ended {
            error!(%error, "The server cannot go on and stops.");
        }
        notifier.stopping();
        notifier.extend_timeout(STOP);
        fronting.cancel();
        let report = supervisor.stop().await;
        if !report.killed.is_empty() {
            warn!(components = report.killed.join(", "), "Some components did not end when asked and were killed.");
        }
        telling.cancel();
        storing.cancel();
        ended
    };
    let (ended, _, stored) = tokio::join!(life, servers, socket.serve(&datastore, storing.clone()));
    let closed = datastore.close().await;
    info!("Stopped.");
    ended?;
    stored?;
    closed?;
    Ok(())
}

fn control_plane(config: &ServerConfig, paths: &Paths, components: &Components, host: &Host) -> Vec<Program> {
    let mut launches = vec![kube_apiserver(config, paths, components, host.advertised(config))];
    if !config.disabled.controller_manager {
        launches.push(kube_controller_manager(config, paths, components));
    }
    if !config.disabled.scheduler {
        launches.push(kube_scheduler(config, paths, components));
    }
    launches.into_iter().map(|launch| launch.program).collect()
}

async fn start_node(
    node: k3s_config::agent::NodeConfig,
    config: &ServerConfig,
    paths: &Paths,
    package: &Package,
    host: &Host,
    supervisor: &Supervisor,
) -> Result<NodeRole, Error> {
    let role = NodeRole::prepare(k3s_agent::Request {
        config: node,
        network: config.network.clone(),
        ips: host.ips.clone(),
        paths: paths.clone(),
        components: package.components.clone(),
        packaged_images: package.images.clone(),
        kube_proxy: !config.disabled.kube_proxy,
        cloud_controller: !config.disabled.cloud_controller,
        verbosity: config.verbosity,
    })
    .await?;
    role.start(supervisor)?;
    Ok(role)
}
