//! The controllers that run in a server's own process, from the moment the API answers.

use std::sync::Arc;

use k3s_components::{HELM, Package, Paths};
use k3s_config::{
    network::Overlay,
    server::{Addon, EgressMode, ServerConfig},
};
use k3s_controllers::{
    ApiEndpoints, Candidate, ClusterView, Deploy, EgressController, NodeController, NodeHosts, NodePasswordOwners,
    Registry, RetiredServiceLb, ServiceLb, Shared, Variables, migrate_node_passwords,
};
use k3s_helm::{Helm, HelmController};
use k3s_supervise::Supervisor;
use k3s_tunnel::Egress;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admin_client::AdminClientSender,
    etcd::{EtcdNodes, Membership},
    host::Host,
    node_passwords::{DeferredNodePasswords, NodePasswords},
    peers::PeerTunnels,
    renewal::Renewal,
    serving_names::ServingNames,
};

/// What they work with.
pub(crate) struct Controllers<'a> {
    pub(crate) config: &'a ServerConfig,
    pub(crate) paths: &'a Paths,
    pub(crate) host: &'a Host,
    pub(crate) supervisor: &'a Supervisor,
    pub(crate) package: &'a Package,
    /// The API, and what is seen of it.
    pub(crate) client: Client,
    pub(crate) view: &'a ClusterView,
    /// Told when the API answers.
    pub(crate) admin_client: &'a AdminClientSender,
    pub(crate) node_passwords: &'a Arc<NodePasswords>,
    /// This server's member of etcd, where it is one.
    pub(crate) member: Option<&'a Arc<Membership>>,
    pub(crate) renewal: &'a Arc<Renewal>,
    /// Told of nodes and pods.
    pub(crate) egress: &'a watch::Sender<Egress>,
}

impl Controllers<'_> {
    /// Runs them until `shutdown`.
    pub(crate) async fn run(self, shutdown: &CancellationToken) {
        // A stop does not wait for an API that is still to come.
        if !shutdown.run_until_cancelled(self.begin()).await.unwrap_or(false) {
            return;
        }
        let (leads, leading) = watch::channel(!self.is_shared());
        let shared = Shared {
            client: self.client.clone(),
            view: self.view.clone(),
            supervisor: self.supervisor.clone(),
            leads: leading,
        };
        let election = async {
            // A server alone leads.
            if self.is_shared() {
                self.stand_for_election(leads, shutdown).await;
            }
        };
        tokio::join!(Box::pin(self.registry().run(&shared, shutdown)), Box::pin(election));
    }

    /// Waits for the API and opens it to this process' own users; false if there will be none.
    async fn begin(&self) -> bool {
        if self.supervisor.ready("kube-apiserver").await.is_err() {
            return false;
        }
        // Before anybody can ask for a name: none of those that are taken may seem to be free.
        migrate_node_passwords(&self.client, &self.paths.cred("node-passwd")).await;
        self.node_passwords.remember_own(&self.client).await;
        self.admin_client.send(self.view);
        self.view.begin();
        true
    }

    /// Which controllers there are: each with the condition on which it is.
    fn registry(&self) -> Registry {
        let config = self.config;
        let front = (self.host.advertised(config.published_at()), config.advertise_port).into();
        let has_coredns = !config.disabled_addons.contains(&Addon::Coredns);
        let balances = !config.disabled_addons.contains(&Addon::Servicelb);
        let lb_namespace = || config.service_lb_namespace.clone();
        let has_egress = config.egress_mode != EgressMode::Disabled;
        let egress = || EgressController { egress: self.egress.clone(), pods: config.egress_mode.includes_pods() };
        let own_node = config.node.is_some().then(|| self.host.name.clone());

        let mut registry = Registry::default();
        registry
            .add(Some(ApiEndpoints { own: front, shared_as: self.is_shared().then(|| self.host.hostname.clone()) }))
            .add(NodeController::new(!config.disabled.cloud_controller, own_node.clone()))
            .add(self.member.map(|member| EtcdNodes { membership: member.clone(), own_node }))
            .add(Some(NodePasswordOwners))
            .add(Some(DeferredNodePasswords(self.node_passwords.clone())))
            .add(self.is_shared().then(|| ServingNames { renewal: self.renewal.clone() }))
            .add(has_egress.then(egress))
            .add((self.is_shared() && config.node.is_some()).then(|| self.peer_tunnels(front)))
            .add(has_coredns.then_some(NodeHosts))
            .add(balances.then(|| ServiceLb { namespace: lb_namespace(), reserved: self.reserved_ports() }))
            .add((!balances).then(|| RetiredServiceLb { namespace: lb_namespace() }))
            .add(Some(self.deploy()))
            .add((!config.disabled.helm_controller).then(|| self.helm_controller()));
        #[cfg(debug_assertions)]
        k3s_controllers::add_faults(&mut registry);
        registry
    }

    /// Where nodes listen themselves: a Service there would take what they tell each other.
    fn reserved_ports(&self) -> Vec<(u16, &'static str)> {
        let overlay = (self.config.network.overlay == Overlay::Vxlan).then_some((k3s_agent::VXLAN_PORT, "UDP"));
        [(self.config.https_listen_port, "TCP"), (k3s_agent::KUBELET_PORT, "TCP")].into_iter().chain(overlay).collect()
    }

    /// Whether other servers work on the same cluster.
    fn is_shared(&self) -> bool {
        self.config.datastore.is_shared()
    }

    async fn stand_for_election(&self, leads: watch::Sender<bool>, shutdown: &CancellationToken) {
        let candidate = Arc::new(Candidate { identity: self.host.name.clone() });
        let task = self.supervisor.task("leader-election").stops_within(Candidate::STOPS_WITHIN);
        task.run(shutdown, |status| {
            let (candidate, client, leads, shutdown) =
                (candidate.clone(), self.client.clone(), leads.clone(), shutdown.clone());
            async move { candidate.run(client, &leads, status, &shutdown).await }
        })
        .await;
    }

    fn peer_tunnels(&self, own: std::net::SocketAddr) -> PeerTunnels {
        let node = k3s_agent::Reachable {
            name: self.host.name.clone(),
            kubelet: self.config.reached_at(),
            ips: self.host.ips.clone(),
            pod_cidrs: self.config.network.cluster_cidrs.clone(),
            egress: self.config.egress_mode,
            view: self.view.clone(),
            paths: self.paths.clone(),
        };
        PeerTunnels { own, node, supervisor: self.supervisor.clone() }
    }

    fn helm_controller(&self) -> HelmController {
        let helm = Helm::new(
            self.package.components.path(HELM),
            self.paths.run().join("helm"),
            self.paths.cred("supervisor.kubeconfig"),
            self.paths.tls("server-ca.crt"),
            self.supervisor.clone(),
        );
        let api = (self.config.reached_at(), self.config.https_listen_port).into();
        HelmController { helm: Arc::new(helm), api }
    }

    fn deploy(&self) -> Deploy {
        let config = self.config;
        Deploy {
            folder: self.paths.server().join("manifests"),
            charts: self.package.charts.clone(),
            disabled: config.disabled_addons.iter().map(|addon| addon.name().to_owned()).collect(),
            variables: Variables {
                cluster_dns: config.network.cluster_dns.clone(),
                cluster_domain: config.network.cluster_domain.clone(),
                system_default_registry: config.system_default_registry.clone(),
                local_storage: config.local_storage.clone(),
                preferred_address_types: config.network.preferred_address_types(),
            },
            server: self.host.name.clone(),
        }
    }
}
