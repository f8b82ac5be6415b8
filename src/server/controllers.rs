//! The controllers that run in a server's own process, from the moment the API answers.

use std::sync::Arc;

use k3s_balancer::Balancer;
use k3s_components::{HELM, Package, Paths};
use k3s_config::{
    ControlPlaneConfig,
    addons::{Addon, AddonsConfig},
    datastore::Reached,
    network::Overlay,
    server::EgressMode,
    snapshots::SnapshotConfig,
};
use k3s_controllers::{
    ApiEndpoints, Candidate, ClusterView, Deploy, EgressController, NodeController, NodeHosts, NodePasswordOwners,
    Registry, RetiredLocalStorage, RetiredServiceLb, ServiceLb, Shared, Variables, migrate_node_passwords,
};
use k3s_datastore::Client as StoreClient;
use k3s_helm::{Helm, HelmController};
use k3s_supervise::Supervisor;
use k3s_tunnel::Egress;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admin_client::AdminClientSender,
    api_addresses::PublishedAddresses,
    encryption::{KeptEncryption, Reencryption, SecretsEncryption},
    etcd::{EtcdNodes, Membership},
    host::Host,
    node_passwords::{DeferredNodePasswords, NodePasswords},
    peers::PeerTunnels,
    renewal::Renewal,
    serving_names::ServingNames,
    snapshot_files::{SnapshotFiles, SnapshotNotices},
};

/// What they work with.
pub(crate) struct Controllers<'a> {
    pub(crate) plane: ControlPlaneConfig<'a>,
    pub(crate) addons: &'a AddonsConfig,
    pub(crate) snapshots: &'a SnapshotConfig,
    pub(crate) snapshot_notices: &'a Arc<SnapshotNotices>,
    /// The node that this server also is, if it is one.
    pub(crate) own_node: Option<String>,
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
    /// What k3s itself keeps in the store.
    pub(crate) store: StoreClient,
    /// This server's member of etcd, where it is one.
    pub(crate) member: Option<&'a Arc<Membership>>,
    /// What leads to other servers' kube-apiservers, where this one runs none.
    pub(crate) balancer: Option<Balancer>,
    pub(crate) renewal: &'a Arc<Renewal>,
    pub(crate) encryption: &'a Arc<SecretsEncryption>,
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
        let stands = self.is_shared() && self.has_kube_apiserver();
        let (leads, leading) = watch::channel(!self.is_shared());
        let shared = Shared {
            client: self.client.clone(),
            view: self.view.clone(),
            supervisor: self.supervisor.clone(),
            leads: leading,
        };
        let election = async {
            // A server alone leads, and one without kube-apiserver has nothing to lead in.
            if stands {
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
        let ControlPlaneConfig { published, egress_mode, disabled, .. } = self.plane;
        let balances = self.addons.has(Addon::Servicelb);
        let lb_namespace = || self.addons.service_lb_namespace.clone();
        let has_egress = egress_mode != EgressMode::Disabled;
        let egress = || EgressController { egress: self.egress.clone(), pods: egress_mode.includes_pods() };

        if !self.has_kube_apiserver() {
            return self.registry_beside_etcd();
        }
        let mut registry = Registry::default();
        registry
            .add(Some(ApiEndpoints { own: published, shared_as: self.is_shared().then(|| self.host.hostname.clone()) }))
            .add(NodeController::new(!disabled.cloud_controller, self.own_node.clone()))
            .add(self.has_etcd().then(|| PublishedAddresses { store: self.store.clone() }))
            .add(self.etcd_nodes())
            .add(self.plane.datastore.on_disk().map(|_| self.snapshot_files()))
            .add(Some(NodePasswordOwners))
            .add(Some(DeferredNodePasswords(self.node_passwords.clone())))
            .add(self.is_shared().then(|| ServingNames { renewal: self.renewal.clone() }))
            .add(Some(KeptEncryption(self.encryption.clone())))
            .add(Some(Reencryption { encryption: self.encryption.clone(), server: self.host.name.clone() }))
            .add(has_egress.then(egress))
            .add((self.is_shared() && self.own_node.is_some()).then(|| self.peer_tunnels()))
            .add(self.addons.has(Addon::Coredns).then_some(NodeHosts))
            .add(balances.then(|| ServiceLb { namespace: lb_namespace(), reserved: self.reserved_ports() }))
            .add((!balances).then(|| RetiredServiceLb { namespace: lb_namespace() }))
            .add((!self.addons.has(Addon::LocalStorage)).then_some(RetiredLocalStorage))
            .add(Some(self.deploy()))
            .add((!disabled.helm_controller).then(|| self.helm_controller()));
        #[cfg(debug_assertions)]
        k3s_controllers::add_faults(&mut registry);
        registry
    }

    /// Those of a server without kube-apiserver: they look after its etcd and its node, and the control plane after everything else.
    fn registry_beside_etcd(&self) -> Registry {
        let mut registry = Registry::default();
        registry
            .add(self.etcd_nodes())
            .add(self.plane.datastore.on_disk().map(|_| self.snapshot_files()))
            .add(Some(DeferredNodePasswords(self.node_passwords.clone())))
            .add(Some(ServingNames { renewal: self.renewal.clone() }))
            .add(Some(KeptEncryption(self.encryption.clone())))
            .add(self.own_node.is_some().then(|| self.peer_tunnels()));
        #[cfg(debug_assertions)]
        k3s_controllers::add_faults(&mut registry);
        registry
    }

    fn etcd_nodes(&self) -> Option<EtcdNodes> {
        let member = self.member?;
        Some(EtcdNodes {
            membership: member.clone(),
            own_node: self.own_node.clone(),
            has_kube_apiserver: self.has_kube_apiserver(),
        })
    }

    fn has_kube_apiserver(&self) -> bool {
        !self.plane.disabled.apiserver
    }

    /// Whether the cluster keeps its state in an etcd of its own, here or on other servers.
    fn has_etcd(&self) -> bool {
        self.plane.datastore.reached() == Reached::Loopback
    }

    /// Where nodes listen themselves: a Service there would take what they tell each other.
    fn reserved_ports(&self) -> Vec<(u16, &'static str)> {
        let overlay = (self.plane.network.overlay == Overlay::Vxlan).then_some((k3s_agent::VXLAN_PORT, "UDP"));
        [(self.plane.front.port(), "TCP"), (k3s_agent::KUBELET_PORT, "TCP")].into_iter().chain(overlay).collect()
    }

    /// Whether other servers work on the same cluster.
    fn is_shared(&self) -> bool {
        self.plane.datastore.is_shared()
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

    fn snapshot_files(&self) -> SnapshotFiles {
        SnapshotFiles {
            config: self.snapshots.clone(),
            paths: self.paths.clone(),
            server: self.host.name.clone(),
            own_node: self.own_node.clone(),
            member: self.member.cloned(),
            notices: self.snapshot_notices.clone(),
        }
    }

    fn peer_tunnels(&self) -> PeerTunnels {
        let node = k3s_agent::Reachable {
            name: self.host.name.clone(),
            kubelet: self.plane.front.ip(),
            ips: self.host.ips.clone(),
            pod_cidrs: self.plane.network.cluster_cidrs.clone(),
            egress: self.plane.egress_mode,
            view: self.view.clone(),
            paths: self.paths.clone(),
        };
        PeerTunnels {
            own: self.plane.published,
            balancer: self.balancer.clone(),
            node,
            supervisor: self.supervisor.clone(),
        }
    }

    fn helm_controller(&self) -> HelmController {
        let helm = Helm::new(
            self.package.components.path(HELM),
            self.paths.run().join("helm"),
            self.paths.cred("supervisor.kubeconfig"),
            self.paths.tls("server-ca.crt"),
            self.supervisor.clone(),
        );
        HelmController { helm: Arc::new(helm), api: self.plane.front }
    }

    fn deploy(&self) -> Deploy {
        let (addons, network) = (self.addons, self.plane.network);
        Deploy {
            folder: self.paths.server().join("manifests"),
            charts: self.package.charts.clone(),
            disabled: addons.disabled.clone(),
            packaged: &Addon::NAMES,
            variables: Variables {
                cluster_dns: network.cluster_dns.clone(),
                cluster_domain: network.cluster_domain.clone(),
                system_default_registry: addons.system_default_registry.clone(),
                local_storage: addons.local_storage.clone(),
                preferred_address_types: network.preferred_address_types(),
            },
            server: self.host.name.clone(),
        }
    }
}
