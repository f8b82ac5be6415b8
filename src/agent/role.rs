//! The life of an agent, from the checked configuration to the last child's end.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Once},
};

use k3s_balancer::{Address, Balancer, Options as BalancerOptions};
use k3s_components::{Package, Paths};
use k3s_config::{
    Role,
    agent::AgentConfig,
    network::Overlay,
    reload::{Changes, Reloaded},
    resources::Profile,
};
use k3s_controllers::{ClusterView, NodeScope, Scope};
use k3s_daemon::{ConfigSource, Daemon, Reloads, STOP, SettledProfile};
use k3s_supervise::{Gate, Supervisor, notify::Notifier};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    Error, api,
    https::Patience,
    identity,
    join::NodeRegistration,
    membership::{EffectiveState, Membership},
    metrics::Metrics,
    network,
    node::{NodeRole, Request, ServerAuthority},
    pod_shutdown::end_pods_with_host,
    reach::{self, Reachable},
    registries::check_registries,
    servers,
    tunnels::{self, Tunnels},
};

/// The name of the balancer in front of servers, in metrics and its state file's, as k3s has it.
pub const BALANCER: &str = "k3s-agent-load-balancer";

/// Runs an agent until `shutdown`, or until something in this process cannot go on. A child's failure never ends it.
///
/// ```text
/// prepare: bind ─► name, password, addresses ─► the servers of the last life
/// start:   join, or remember ─► containerd ─► images ─► kubelet ─► pod network ─┐
///          load balancer ─► the API answers ─► kube-proxy ──────────────────────┴─► READY
/// drain:   children, in reverse ─► load balancer
/// ```
///
/// # Errors
/// What has to be the agent's own is taken or cannot be used, or no server lets it in and none will.
pub async fn run(
    config: AgentConfig,
    source: ConfigSource<AgentConfig>,
    package: Package,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let paths = Paths::new(&config.data_dir, Paths::RUN);
    let balancer = listen(&config).await?;
    let daemon = Daemon::prepare(Role::Agent, &paths)?;
    let agent = Agent::prepare(config, paths, package, &daemon).await?;
    let life = agent.live(balancer, daemon.reloads(source), daemon.notifier().clone(), &shutdown);
    daemon.run(life, &shutdown).await
}

/// The load balancer's socket.
async fn listen(config: &AgentConfig) -> Result<TcpListener, Error> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, config.balancer_port));
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// An agent that is prepared: from here on it joins, and only children start.
struct Agent {
    config: AgentConfig,
    paths: Paths,
    package: Package,
    /// The node's own addresses; what is gone by is in the membership.
    ips: watch::Sender<Vec<IpAddr>>,
    /// Tells of addresses that the host loses.
    lost: broadcast::Sender<IpAddr>,
    balancer: Balancer,
    membership: Membership,
    metrics: Metrics,
    profile: Profile,
    supervisor: Supervisor,
}

impl Agent {
    async fn prepare(mut config: AgentConfig, paths: Paths, package: Package, daemon: &Daemon) -> Result<Self, Error> {
        check_registries(&config.node)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, config.balancer_port));
        let ips = watch::Sender::new(network::own_addresses(&config.node.ips).await?);
        let (name, password) = (identity::node_name(&config.node)?, identity::password(&paths)?);
        config.node.name.clone_from(&name);
        let balancer = Balancer::new(BalancerOptions {
            name: BALANCER.to_owned(),
            url: config.server.to_string(),
            default: Some(Address::new(&config.server.host, config.server.port)),
            state_file: paths.agent_etc(&format!("{BALANCER}.json")),
        })?;
        let membership = Membership::new(NodeRegistration {
            server: config.server.clone(),
            balancer: balancer.clone(),
            patience: Patience::default(),
            token: identity::token(&config)?,
            name,
            password,
            ips: ips.subscribe(),
            external_ips: config.node.external_ips.clone(),
            dir: paths.agent(),
            apiserver: format!("https://{address}"),
            trust_told: Once::new(),
        });
        let supervisor = daemon.supervisor().clone();
        let profile = SettledProfile::of(config.resource_profile);
        profile.tell(&supervisor);
        let mut registry = Registry::default();
        balancer.register_metrics(&mut registry);
        let metrics = Metrics {
            registry: Arc::new(registry),
            address: config.bind_address,
            dir: paths.agent(),
            supervisor: supervisor.clone(),
        };
        info!(%address, server = %config.server, "The load balancer leads to the servers.");
        Ok(Self {
            config,
            paths,
            package,
            ips,
            lost: broadcast::Sender::new(tunnels::LOST),
            balancer,
            membership,
            metrics,
            profile: profile.profile,
            supervisor,
        })
    }

    /// Runs until `shutdown`, or until it cannot go on; everything has ended when it returns.
    async fn live(
        self,
        balancer: TcpListener,
        reloads: Reloads<AgentConfig>,
        notifier: Arc<Notifier>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let ends = CancellationToken::new();
        let work = async {
            let ended = Box::pin(self.work(reloads, &notifier, shutdown)).await;
            if let Err(error) = &ended {
                error!(%error, "The agent cannot go on and stops.");
            }
            self.drain(&notifier, &ends).await;
            ended
        };
        let (ended, ()) = tokio::join!(work, self.serve(balancer, &ends));
        ended
    }

    /// Serves the node's own clients and readers of metrics until the end.
    async fn serve(&self, balancer: TcpListener, ends: &CancellationToken) {
        tokio::join!(
            self.balancer.serve(balancer, ends.clone()),
            self.metrics.run(self.membership.known(), self.membership.renewed(), ends.clone()),
        );
    }

    /// Joins, starts everything and does what this process itself has to do, until `shutdown` or until it cannot go on.
    async fn work(
        &self,
        reloads: Reloads<AgentConfig>,
        notifier: &Notifier,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let [server, api] = [self.supervisor.gate("server")?, self.supervisor.gate("kube-apiserver")?];
        let member = async { Ok(self.membership.run(&server, &self.supervisor).await?) };
        let node = async {
            let known = next(&mut self.membership.known()).await;
            let view = self.view(&known).await?;
            let node = NodeRole::prepare(self.request(&self.config, &known, &view)).await?;
            node.start(&self.supervisor)?;
            let beside = async {
                let servers = servers::follow(&self.balancer, self.membership.api(), &view);
                let (opening, tunnels) = (self.open_api(&api, &view), self.run_tunnels(&view));
                tokio::join!(opening, self.announce(notifier), servers, tunnels);
                Ok(())
            };
            tokio::try_join!(self.run_node(node, known, reloads, &view, shutdown), beside)
        };
        let addresses = network::follow_own_addresses(&self.config.node.ips, &self.ips);
        let lost =
            async { network::follow_lost_addresses(Some(&self.balancer), &self.lost).await.map_err(Error::from) };
        let work = async { tokio::try_join!(member, node, addresses, lost).map(drop) };
        shutdown.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }

    /// Runs the node by what is known of its cluster and by its configuration, and anew by whatever one of them changes to.
    async fn run_node(
        &self,
        mut node: NodeRole,
        mut known: EffectiveState,
        mut reloads: Reloads<AgentConfig>,
        view: &ClusterView,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let mut changes = self.membership.known();
        let mut config = self.config.clone();
        loop {
            let (successor, now) = {
                let mut life = pin!(node.run(&self.supervisor, shutdown.clone()));
                loop {
                    let changed = changes.wait_for(|now| now.as_ref().is_some_and(|now| *now != known));
                    tokio::select! {
                        ended = &mut life => return ended,
                        _ = changed => {}
                        () = reloads.asked() => {
                            match self.reload(&mut config, &reloads, &known, &node, view).await {
                                Some(successor) => break (successor, known.clone()),
                                None => continue,
                            }
                        }
                    }
                    let now = next(&mut changes).await;
                    if now.config != known.config || now.authority != known.authority {
                        info!("What the servers tell of the cluster has changed.");
                    }
                    break (NodeRole::prepare(self.request(&config, &now, view)).await?, now);
                }
            };
            let authority =
                if now.authority == known.authority { ServerAuthority::Same } else { ServerAuthority::Another };
            let before = std::mem::replace(&mut node, successor);
            node.take_over(&before, authority, &self.supervisor).await?;
            known = now;
        }
    }

    /// Takes over what of `config` has changed, as far as it can change under pods that run; the node, where it is another one from now on.
    async fn reload(
        &self,
        config: &mut AgentConfig,
        reloads: &Reloads<AgentConfig>,
        known: &EffectiveState,
        node: &NodeRole,
        view: &ClusterView,
    ) -> Option<NodeRole> {
        let mut successor = None;
        let apply = async |mut asked: AgentConfig| {
            // The name as it was settled at the start, with the id.
            asked.node.settle_name(&config.node);
            let Reloaded { config: now, changes } = config.reloaded(asked);
            successor = Some(NodeRole::prepare(self.request(&now, known, view)).await?);
            *config = now;
            Ok::<Changes, Error>(changes)
        };
        reloads.reload(apply).await;
        successor.filter(|successor| !successor.is_same(node))
    }

    /// Holds tunnels to the servers, with whatever they may reach at the time.
    async fn run_tunnels(&self, view: &ClusterView) {
        let rules = reach::kubelet_alone(self.config.node.kubelet_address());
        let tunnels = Tunnels {
            servers: self.balancer.servers(),
            balancer: Some(self.balancer.clone()),
            rules: rules.subscribe(),
            lost: self.lost.clone(),
            supervisor: self.supervisor.clone(),
            dir: self.paths.agent(),
        };
        let reach = async {
            let mut changes = self.membership.known();
            loop {
                let known = next(&mut changes).await;
                let reachable = Reachable {
                    name: self.config.node.name.clone(),
                    kubelet: self.config.node.kubelet_address(),
                    ips: known.ips.clone(),
                    pod_cidrs: known.config.network.cluster_cidrs.clone(),
                    egress: known.config.egress,
                    view: view.clone(),
                    paths: self.paths.clone(),
                };
                tokio::select! {
                    () = reachable.keep(&rules) => {}
                    _ = changes.changed() => {}
                }
            }
        };
        tokio::select! {
            () = tunnels.run() => {}
            () = reach => {}
        }
    }

    /// Opens what waits for kube-apiserver once it answers through the load balancer.
    async fn open_api(&self, gate: &Gate, view: &ClusterView) {
        api::until_api_ready(&self.paths.kubelet_kubeconfig(), gate).await;
        info!("The Kubernetes API answers.");
        gate.open();
        view.begin();
    }

    /// Says READY once everything is; of a node that started without a server, once kubelet is, since pods run then.
    async fn announce(&self, notifier: &Notifier) {
        let joined = self.membership.api().borrow().is_some();
        let ready = if joined { self.supervisor.all_ready().await } else { self.supervisor.ready("kubelet").await };
        if ready.is_ok() {
            notifier.ready();
            info!("The node is ready.");
        }
    }

    async fn drain(&self, notifier: &Notifier, ends: &CancellationToken) {
        notifier.stopping();
        notifier.extend_timeout(STOP);
        end_pods_with_host(&self.paths, &self.config.node.name, &self.supervisor, notifier).await;
        notifier.extend_timeout(STOP);
        self.supervisor.stop().await;
        ends.cancel();
    }

    /// What this process sees of the cluster, by the certificates that it has from now on.
    async fn view(&self, known: &EffectiveState) -> Result<ClusterView, Error> {
        let nodes = match known.config.network.overlay {
            Overlay::None => Scope::Own,
            Overlay::Vxlan | Overlay::HostGw => Scope::All,
        };
        let pods = if known.config.network_policy { Scope::All } else { Scope::Own };
        let scope = NodeScope { nodes, pods };
        api::view_of_node(&self.config.node.name, &self.paths, scope, &self.membership.renewed()).await
    }

    fn request(&self, config: &AgentConfig, known: &EffectiveState, view: &ClusterView) -> Request {
        Request {
            config: config.node.clone(),
            network: known.config.network.clone(),
            ips: known.ips.clone(),
            paths: self.paths.clone(),
            components: self.package.components.clone(),
            packaged_images: self.package.images.clone(),
            service_lb: known.config.service_lb,
            system_default_registry: known.config.system_default_registry.clone(),
            kube_proxy: known.config.kube_proxy,
            network_policy: known.config.network_policy,
            cloud_controller: known.config.cloud_controller,
            pod_egress: known.config.egress.includes_pods(),
            profile: self.profile,
            verbosity: config.verbosity,
            shim_cgroup: self.supervisor.survivors_cgroup(),
            view: view.clone(),
            renewed: self.membership.renewed(),
        }
    }
}

/// What is known, as soon as something is.
async fn next(known: &mut watch::Receiver<Option<EffectiveState>>) -> EffectiveState {
    match known.wait_for(Option::is_some).await.map(|known| known.clone()) {
        Ok(Some(known)) => known,
        // The membership lives as long as the agent.
        _ => std::future::pending().await,
    }
}
