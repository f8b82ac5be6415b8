//! The node's life: prepared before anything runs, handed to the supervisor, joined to its network when the API knows it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use k3s_components::{
    Components, InheritedEnvironment, Launch, Node, Paths, UserConfigs, UserTemplate, containerd, kube_proxy, kubelet,
};
use k3s_config::{
    agent::NodeConfig,
    network::{ClusterNetwork, Overlay},
    resources::Profile,
};
use k3s_controllers::{ClusterView, annotate};
use k3s_files as files;
use k3s_network::{Conntrack, HostPlan, ProxyMode, Warning};
use k3s_supervise::{
    GraphError, Supervisor,
    capability::{self, Capability},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Error, annotations,
    api::{self, Renewed},
    cgroup,
    error::chain,
    external_ports::ExternalAddresses,
    images::Images,
    network,
    network_policy::NetworkPolicies,
    pod_network,
    registries::{self, RegistriesFile},
    resolv_conf::{self, NO_RESOLV_CONF, resolv_conf_for_pods},
    service_rules,
};

/// Between looks at what of the host stands in pods' way, where something does.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

const IPVS: &str = "kube-proxy's mode ipvs takes the addresses of Services with a load balancer, which are other nodes' own, to this node: use --kube-proxy-arg=proxy-mode=nftables, or --disable=servicelb on the servers.";

/// What a node is made from.
#[derive(Debug)]
pub struct Request {
    /// What the user asked for, with the node's whole name.
    pub config: NodeConfig,
    /// The cluster's address plan.
    pub network: ClusterNetwork,
    /// The node's own addresses, the primary first; never empty.
    pub ips: Vec<IpAddr>,
    /// Where state lies.
    pub paths: Paths,
    /// The programs.
    pub components: Components,
    /// The folder of images that come with the package.
    pub packaged_images: Option<PathBuf>,
    /// The registry that takes the place of packaged images' own (`--system-default-registry` of the servers).
    pub system_default_registry: Option<String>,
    /// Whether Services are served at nodes' addresses (`--disable=servicelb` not given).
    pub service_lb: bool,
    /// Whether kube-proxy runs (`--disable-kube-proxy` not given).
    pub kube_proxy: bool,
    /// Whether network policies are enforced (`--disable-network-policy` not given).
    pub network_policy: bool,
    /// Whether our node controller sets its addresses (`--disable-cloud-controller` not given).
    pub cloud_controller: bool,
    /// Whether servers reach pods here through a tunnel (`--egress-selector-mode`).
    pub pod_egress: bool,
    /// How much memory programs are set up for.
    pub profile: Profile,
    /// klog verbosity for children.
    pub verbosity: u8,
    /// Where containerd's shims go, from the root of the unified hierarchy; where it starts them if `None`.
    pub shim_cgroup: Option<PathBuf>,
    /// What the process sees of the cluster.
    pub view: ClusterView,
    /// Tells of new certificates in `<data>/agent`.
    pub renewed: Renewed,
}

/// A node that is ready to start: the host is prepared and every file is in place.
#[derive(Debug)]
pub struct NodeRole {
    node: Node,
    paths: Paths,
    launches: Vec<Launch>,
    /// kubelet without what it takes at registration only.
    registered_kubelet: Launch,
    /// Labels that the nodes before this one had, and this one has not.
    former_labels: Vec<String>,
    images: Images,
    registries: RegistriesFile,
    warnings: Vec<Warning>,
    obstacles: Vec<Warning>,
    pod_egress: bool,
    policies: Option<NetworkPolicies>,
    /// At which Services are served.
    external: ExternalAddresses,
    view: ClusterView,
    renewed: Renewed,
}

/// What servers are checked by, after the cluster was heard of again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerAuthority {
    /// The one of before.
    Same,
    /// Another one.
    Another,
}

impl NodeRole {
    /// Prepares the host and writes what the programs read.
    ///
    /// # Errors
    /// A file of the user's cannot be followed, one of ours cannot be written, or the host does not have what a node needs.
    pub async fn prepare(request: Request) -> Result<Self, Error> {
        let Request { config, network, ips, paths, components, packaged_images, kube_proxy: with_proxy, .. } = request;
        let host = k3s_network::prepare(&HostPlan {
            cluster_cidrs: network.cluster_cidrs.clone(),
            filter_bridges: with_proxy || network.overlay != Overlay::None,
            conntrack: Conntrack::default(),
        })
        .await;
        let cgroup_v2 = cgroup::is_unified().map_err(Error::file("/sys/fs/cgroup"))?;
        let mut warnings = host.warnings;
        let has_ipvs = config.kube_proxy_args.value_of("proxy-mode") == Some("ipvs");
        if with_proxy && has_ipvs && request.service_lb {
            warnings.push(Warning { key: "ipvs", sentence: IPVS.to_owned() });
        }
        let resolv_conf = match resolv_conf_for_pods(config.resolv_conf.as_deref()) {
            Some(path) => path,
            None => {
                warn!("{NO_RESOLV_CONF}");
                warnings.push(Warning { key: "resolv-conf", sentence: NO_RESOLV_CONF.to_owned() });
                let fallback = paths.agent_etc("resolv.conf");
                resolv_conf::fall_back(&fallback)?;
                fallback
            }
        };
        let node = Node {
            resolv_conf,
            proxy_mode: host.proxy_mode,
            cgroup_driver: cgroup::driver(cgroup_v2),
            // Without an answer runc is asked for less, which always works.
            may_lower_oom_score: capability::has(Capability::CAP_SYS_RESOURCE).unwrap_or(false),
            cgroup_v2,
            shim_cgroup: request.shim_cgroup.map(|cgroup| cgroup.display().to_string()),
            cloud_provider_external: request.cloud_controller,
            profile: request.profile,
            verbosity: request.verbosity,
            config,
            network,
            ips,
        };
        let inherited = InheritedEnvironment::new(std::env::vars_os(), &node.network, &[]);
        let drop_ins = paths.agent_etc("kubelet.conf.d");
        let user = UserConfigs::read(&node.config, &drop_ins)?;
        UserConfigs::remove_earlier(&drop_ins).map_err(|(path, source)| Error::File { path, source })?;
        let registered_kubelet = kubelet(&without_registration(&node), &paths, &components, &user);
        let mut others = vec![kubelet(&node, &paths, &components, &user)];
        others.extend(with_proxy.then(|| kube_proxy(&node, &paths, &components, &user)));
        others.iter_mut().for_each(|launch| inherited.adapt(&mut launch.program));
        let mut launches = vec![launch_containerd(&node, &paths, &components, &inherited)?];
        launches.extend(others);
        launches.iter().try_for_each(Launch::install_files)?;
        for dir in [paths.agent().join("pod-manifests"), paths.agent().join("containerd"), paths.images()] {
            files::create_directory(&dir, 0o700)?;
        }
        network::install_cni(&node, &paths)?;
        let policies = NetworkPolicies::new(&node, &paths);
        policies.prepare(request.network_policy).await;
        let policies = request.network_policy.then_some(policies);
        let serves = with_proxy && request.service_lb;
        let external = if serves { ExternalAddresses::of(&node) } else { ExternalAddresses::default() };
        let registries = RegistriesFile::of(&node.config, &paths);
        if let Err(error) = registries.apply() {
            warnings.push(Warning { key: registries::WARNING, sentence: chain(&error) });
        }
        let mut registries_of_images = request.system_default_registry.into_iter().collect::<Vec<_>>();
        registries_of_images.extend(node.config.airgap_registries.iter().cloned());
        let images = Images::of(packaged_images, registries_of_images, &paths);
        let (pod_egress, view, renewed) = (request.pod_egress, request.view, request.renewed);
        let obstacles = host.obstacles;
        let former_labels = Vec::new();
        Ok(Self {
            node,
            paths,
            launches,
            registered_kubelet,
            former_labels,
            images,
            registries,
            warnings,
            obstacles,
            pod_egress,
            policies,
            external,
            view,
            renewed,
        })
    }

    /// Hands the programs to the supervisor.
    ///
    /// # Errors
    /// Two programs have one name, or one waits for something that nothing makes.
    pub fn start(&self, supervisor: &Supervisor) -> Result<(), GraphError> {
        supervisor.gate("images")?;
        for Warning { key, sentence } in self.warnings.iter().chain(&self.obstacles) {
            supervisor.warn(key, sentence.as_str());
        }
        supervisor.start(self.launches.iter().map(|launch| launch.program.clone()))
    }

    /// Whether this node would run as `before` does.
    pub fn is_same(&self, before: &Self) -> bool {
        self.node == before.node && self.launches == before.launches
    }

    /// Takes the place of `before`, which runs: of its programs, those that change are started anew, and with another `authority`
    /// those that check servers by it. Pods stay, and kubelet does where only what it registers with has changed. What it
    /// warns of is told in the place of what `before` did.
    ///
    /// # Errors
    /// A program that did not run before cannot be started.
    pub async fn take_over(
        &mut self,
        before: &Self,
        authority: ServerAuthority,
        supervisor: &Supervisor,
    ) -> Result<(), GraphError> {
        let gone = before.node.config.labels.iter().map(|(key, _)| key).chain(&before.former_labels);
        let has = |key: &String| self.node.config.labels.iter().any(|(label, _)| label == key);
        self.former_labels = gone.filter(|key| !has(key)).cloned().collect();
        for Warning { key, .. } in &before.warnings {
            if self.warnings.iter().all(|warning| warning.key != *key) {
                supervisor.clear(key);
            }
        }
        for Warning { key, sentence } in &self.warnings {
            supervisor.warn(key, sentence.as_str());
        }
        for launch in &self.launches {
            let is_checked_by_it = launch.program.name != "containerd";
            let must_restart = authority == ServerAuthority::Another && is_checked_by_it;
            if !must_restart && before.launches.contains(launch) {
                continue;
            }
            let is_registered = launch.program.name == self.registered_kubelet.program.name
                && self.registered_kubelet == before.registered_kubelet;
            if !must_restart && is_registered && supervisor.amend(launch.program.clone()).await.is_ok() {
                continue;
            }
            // One that did not run before is started.
            if supervisor.replace(launch.program.clone()).await.is_err() {
                supervisor.start([launch.program.clone()])?;
            }
        }
        Ok(())
    }

    /// Does the node's own part until it is done or `shutdown` falls: imports images, tells the API the node's addresses, and keeps
    /// it on the pod network. What fails is told in the status and tried again.
    ///
    /// # Errors
    /// The kernel does not tell of the node's network any more, or the API refuses for good what other nodes have to know of this one.
    pub async fn run(&self, supervisor: &Supervisor, shutdown: CancellationToken) -> Result<(), Error> {
        let gate = supervisor.gate("images").ok();
        let import = async {
            self.images.run(supervisor, gate.as_ref()).await;
            Ok(())
        };
        let network = pod_network::run(&self.node, &self.paths, &self.view, &self.renewed, supervisor);
        let obstacles = async {
            self.follow_obstacles(supervisor).await;
            Ok(())
        };
        let registries = async {
            self.registries.follow(supervisor).await;
            Ok(())
        };
        let policies = async {
            if let Some(policies) = &self.policies {
                policies.run(&self.view, supervisor, &shutdown).await;
            }
            Ok(())
        };
        let services = async {
            if self.has_service_tables() {
                service_rules::run(supervisor).await;
            }
            Ok(())
        };
        let external = async {
            self.external.run(&self.view, supervisor).await;
            Ok(())
        };
        let introduced = self.introduce(supervisor);
        let packet_filter = async { tokio::try_join!(policies, services, external).map(drop) };
        let work =
            async { tokio::try_join!(import, registries, introduced, network, packet_filter, obstacles).map(drop) };
        shutdown.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }

    /// Whether kube-proxy runs, and works with nftables.
    fn has_service_tables(&self) -> bool {
        let mode = self.node.config.kube_proxy_args.value_of("proxy-mode").unwrap_or(self.node.proxy_mode.flag());
        self.launches.iter().any(|launch| launch.program.name == "kube-proxy") && mode == ProxyMode::Nftables.flag()
    }

    /// Tells what of the host still stands in pods' way, until somebody has cured all of it; where nothing did, nothing is looked at.
    async fn follow_obstacles(&self, supervisor: &Supervisor) {
        let mut known = self.obstacles.clone();
        while !known.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
            let found = k3s_network::obstacles(self.node.proxy_mode, &self.node.network.cluster_cidrs).await;
            for Warning { key, .. } in &known {
                if found.iter().all(|warning| warning.key != *key) {
                    supervisor.clear(key);
                    info!(key, "Something about the host no longer stands in pods' way.");
                }
            }
            for Warning { key, sentence } in &found {
                supervisor.warn(key, sentence.as_str());
            }
            known = found;
        }
    }

    /// Tells the API what only the node knows of itself.
    async fn introduce(&self, supervisor: &Supervisor) -> Result<(), Error> {
        if supervisor.ready("kube-apiserver").await.is_err() {
            return Ok(());
        }
        let kubeconfig = self.paths.kubelet_kubeconfig();
        let client = api::lasting_client(kubeconfig, self.renewed.clone()).await?;
        let metadata = annotations::metadata(&self.node, self.former_labels.clone(), self.pod_egress);
        annotate(&self.view, client, &self.node.config.name, &metadata).await;
        Ok(())
    }
}

/// The node as kubelet runs it once the API knows it.
fn without_registration(node: &Node) -> Node {
    let config = NodeConfig { labels: Vec::new(), taints: Vec::new(), ..node.config.clone() };
    Node { config, ..node.clone() }
}

fn launch_containerd(
    node: &Node,
    paths: &Paths,
    components: &Components,
    inherited: &InheritedEnvironment,
) -> Result<Launch, Error> {
    let (path, template) = UserTemplate::find(&paths.agent_etc("containerd"))?.unzip();
    let pause = node.config.pause_image.as_deref().unwrap_or(k3s_images::PAUSE);
    containerd(node, paths, components, pause, template.as_ref(), inherited)
        .map_err(|source| Error::Template { path: path.unwrap_or_default(), source })
}
