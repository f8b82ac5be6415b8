//! The controllers that run in a server's own process, from the moment the API answers.

use k3s_agent::Renewed;
use k3s_components::Paths;
use k3s_config::server::{Addon, EgressMode, ServerConfig};
use k3s_controllers::{
    Addons, NodeController, Variables, migrate_node_passwords, publish_api_endpoint, publish_api_endpoints, run_egress,
    run_node_hosts, run_node_password_owners,
};
use k3s_supervise::Supervisor;
use k3s_tunnel::Egress;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Error, bootstrap::Host, core::CoreSender, node_passwords::NodePasswords, peers};

/// Cluster DNS, packed with us.
const COREDNS: &str = "docker.io/k3s-rs/coredns:1.15.0";

/// What they work with.
pub(crate) struct Controllers<'a> {
    pub(crate) config: &'a ServerConfig,
    pub(crate) paths: &'a Paths,
    pub(crate) host: &'a Host,
    pub(crate) supervisor: &'a Supervisor,
    /// Told when the API answers.
    pub(crate) core: &'a CoreSender,
    pub(crate) node_passwords: &'a NodePasswords,
    /// Told of nodes and pods.
    pub(crate) egress: &'a watch::Sender<Egress>,
    /// Tells of new certificates.
    pub(crate) renewed: Renewed,
}

impl Controllers<'_> {
    /// Runs them until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { config, paths, host, supervisor, core, node_passwords, egress, renewed } = self;
        let addons = Addons {
            folder: paths.server().join("manifests"),
            disabled: config.disabled_addons.iter().map(|addon| addon.name().to_owned()).collect(),
            variables: Variables {
                cluster_dns: config.network.cluster_dns.clone(),
                cluster_domain: config.network.cluster_domain.clone(),
                system_default_registry: config.system_default_registry.clone(),
                coredns_image: COREDNS.to_owned(),
            },
        };
        if supervisor.ready("kube-apiserver").await.is_err() {
            return Ok(());
        }
        let client = k3s_agent::lasting_client(&paths.cred("supervisor.kubeconfig"), renewed.clone()).await?;
        // Before anybody can ask for a name: none of those that are taken may seem to be free.
        migrate_node_passwords(&client, &paths.cred("node-passwd")).await;
        node_passwords.remember_own(&client).await;
        core.send(client.clone());
        let nodes = NodeController {
            initialises: !config.disabled.cloud_controller,
            own_node: config.node.is_some().then(|| host.name.clone()),
        };
        let hosts = async {
            if !config.disabled_addons.contains(&Addon::Coredns) {
                run_node_hosts(client.clone(), shutdown.clone()).await;
            }
        };
        let egress = async {
            if config.egress_mode != EgressMode::Disabled {
                run_egress(client.clone(), egress, config.egress_mode.includes_pods(), shutdown.clone()).await;
            }
        };
        let front = (host.advertised(config), config.advertise_port).into();
        let endpoint = async {
            if config.datastore.is_shared() {
                publish_api_endpoints(client.clone(), front, host.hostname.clone(), shutdown.clone()).await;
            } else {
                publish_api_endpoint(client.clone(), front, shutdown.clone()).await;
            }
        };
        let tunnels = async {
            if config.datastore.is_shared() && config.node.is_some() {
                let node = k3s_agent::Reachable {
                    name: host.name.clone(),
                    ips: host.ips.clone(),
                    pod_cidrs: config.network.cluster_cidrs.clone(),
                    egress: config.egress_mode,
                    paths: paths.clone(),
                    renewed,
                };
                peers::hold_tunnels(client.clone(), front, &node, supervisor, shutdown.clone()).await;
            }
        };
        tokio::join!(
            Box::pin(endpoint),
            Box::pin(tunnels),
            Box::pin(nodes.run(client.clone(), shutdown.clone())),
            Box::pin(hosts),
            Box::pin(node_passwords.check_deferred(shutdown.clone())),
            Box::pin(run_node_password_owners(client.clone(), shutdown.clone())),
            Box::pin(egress),
            Box::pin(addons.run(client.clone(), shutdown.clone())),
        );
        Ok(())
    }
}
