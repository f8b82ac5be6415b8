//! What a changed configuration takes while k3s runs.
//!
//! A reload takes over what can change under pods that run; everything else waits for the next start, and is told by its flag's name.
//! Which is which is settled here alone: a new field does not compile without its answer.
//!
//! ```text
//! running ─┐             ┌─ the configuration to go on by
//!          ├─ reloaded ──┤
//! asked ───┘             └─ changes: a flag and its effect each
//! ```

use crate::{
    addons::AddonsConfig,
    agent::AgentConfig,
    args::ComponentArgs,
    network::ClusterNetwork,
    node::NodeConfig,
    server::{ControlPlaneArgs, DisabledParts, ServerConfig},
};

/// What is done about a flag whose value has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Programs are made anew, and those whose arguments or files differ are started again.
    Programs,
    /// The node's labels are set through the API.
    Labels,
    /// The node's taints are set through the API.
    Taints,
    /// A node takes it when it registers: kubelet may not change its own node's taints (the admission plugin `NodeRestriction`).
    Registration,
    /// It counts when k3s starts again.
    NextStart,
}

/// A flag whose value has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Its name, without dashes.
    pub flag: &'static str,
    /// What is done about it.
    pub effect: Effect,
}

/// All that has changed, in no particular order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(Vec<Change>);

/// What a reload comes to.
#[derive(Debug, Clone)]
pub struct Reloaded<C> {
    /// What to go on by: what has to wait for the next start is as before.
    pub config: C,
    /// What differs between before and what was asked for.
    pub changes: Changes,
}

/// Arguments of kube-apiserver that the front goes by as well, from its start on.
const READ_BY_FRONT: [&str; 6] = [
    "anonymous-auth",
    "authentication-config",
    "cors-allowed-origins",
    "strict-transport-security-directives",
    "tls-cipher-suites",
    "tls-min-version",
];

impl Changes {
    /// Whether anything has this effect.
    pub fn have(&self, effect: Effect) -> bool {
        self.0.iter().any(|change| change.effect == effect)
    }

    /// The flags of those changes that `are_meant`, joined by commas; `None` if there is none.
    pub fn flags(&self, are_meant: impl Fn(Effect) -> bool) -> Option<String> {
        let mut flags = Vec::new();
        for Change { flag, effect } in &self.0 {
            // Some are read into several fields.
            if are_meant(*effect) && !flags.contains(flag) {
                flags.push(*flag);
            }
        }
        (!flags.is_empty()).then(|| flags.join(", "))
    }

    /// Goes by the value that is `asked` for from now on.
    fn take<T: PartialEq>(&mut self, flag: &'static str, effect: Effect, running: &mut T, asked: T) {
        if *running != asked {
            *running = asked;
            self.0.push(Change { flag, effect });
        }
    }

    /// Stays with the value that runs.
    fn keep<T: PartialEq>(&mut self, flag: &'static str, running: &T, asked: &T) {
        if running != asked {
            self.0.push(Change { flag, effect: Effect::NextStart });
        }
    }
}

impl ServerConfig {
    /// What to go on by where this runs and the operator has asked for something else.
    pub fn reloaded(&self, asked: Self) -> Reloaded<Self> {
        let (mut config, mut changes) = (self.clone(), Changes::default());
        let Self {
            data_dir,
            bind_address,
            https_listen_port,
            balancer_port,
            advertise_address,
            advertise_port,
            tls_sans,
            network,
            egress_mode,
            datastore,
            snapshots,
            // A server that runs restores nothing.
            cluster_reset: _,
            token,
            agent_token,
            kubeconfig,
            supervisor_metrics,
            secrets_encryption,
            encryption_provider,
            addons,
            disabled,
            args,
            node,
            node_name,
            ips,
            external_ips,
            resource_profile,
            debug,
            verbosity,
        } = asked;
        changes.keep("data-dir", &self.data_dir, &data_dir);
        changes.keep("bind-address", &self.bind_address, &bind_address);
        changes.keep("https-listen-port", &self.https_listen_port, &https_listen_port);
        changes.keep("lb-server-port", &self.balancer_port, &balancer_port);
        changes.keep("advertise-address", &self.advertise_address, &advertise_address);
        changes.keep("advertise-port", &self.advertise_port, &advertise_port);
        changes.keep("tls-san", &self.tls_sans, &tls_sans);
        changes.keep_network(&self.network, &network);
        changes.keep("egress-selector-mode", &self.egress_mode, &egress_mode);
        changes.keep("datastore-endpoint", &self.datastore, &datastore);
        changes.keep("snapshot-schedule-cron", &self.snapshots, &snapshots);
        changes.keep("token", &self.token, &token);
        changes.keep("agent-token", &self.agent_token, &agent_token);
        changes.keep("write-kubeconfig", &self.kubeconfig, &kubeconfig);
        changes.keep("supervisor-metrics", &self.supervisor_metrics, &supervisor_metrics);
        changes.keep("secrets-encryption", &self.secrets_encryption, &secrets_encryption);
        changes.keep("secrets-encryption-provider", &self.encryption_provider, &encryption_provider);
        changes.keep_addons(&self.addons, &addons);
        changes.keep_parts(self.disabled, disabled);
        changes.take_control_plane(&mut config.args, args);
        match (&mut config.node, node) {
            (Some(running), Some(asked)) => changes.take_node(running, asked, Effect::Taints),
            // These are the node's too, where there is one.
            (running, asked) => {
                changes.keep("disable-agent", &running.is_some(), &asked.is_some());
                changes.keep("node-name", &self.node_name, &node_name);
                changes.keep("node-ip", &self.ips, &ips);
                changes.keep("node-external-ip", &self.external_ips, &external_ips);
            }
        }
        changes.keep("resource-profile", &self.resource_profile, &resource_profile);
        changes.keep("debug", &self.debug, &debug);
        changes.take("v", Effect::Programs, &mut config.verbosity, verbosity);
        Reloaded { config, changes }
    }
}

impl AgentConfig {
    /// What to go on by where this runs and the operator has asked for something else.
    pub fn reloaded(&self, asked: Self) -> Reloaded<Self> {
        let (mut config, mut changes) = (self.clone(), Changes::default());
        let Self { data_dir, server, token, bind_address: _, balancer_port, node, resource_profile, debug, verbosity } =
            asked;
        changes.keep("data-dir", &self.data_dir, &data_dir);
        changes.keep("server", &self.server, &server);
        changes.keep("token", &self.token, &token);
        changes.keep("lb-server-port", &self.balancer_port, &balancer_port);
        changes.take_node(&mut config.node, node, Effect::Registration);
        changes.keep("resource-profile", &self.resource_profile, &resource_profile);
        changes.keep("debug", &self.debug, &debug);
        changes.take("v", Effect::Programs, &mut config.verbosity, verbosity);
        Reloaded { config, changes }
    }
}

impl Changes {
    fn keep_addons(&mut self, running: &AddonsConfig, asked: &AddonsConfig) {
        let AddonsConfig { disabled, service_lb_namespace, system_default_registry, local_storage } = asked;
        self.keep("disable", &running.disabled, disabled);
        self.keep("servicelb-namespace", &running.service_lb_namespace, service_lb_namespace);
        self.keep("system-default-registry", &running.system_default_registry, system_default_registry);
        self.keep("default-local-storage-path", &running.local_storage, local_storage);
    }

    fn keep_parts(&mut self, running: DisabledParts, asked: DisabledParts) {
        let DisabledParts {
            scheduler,
            cloud_controller,
            kube_proxy,
            network_policy,
            helm_controller,
            controller_manager,
            apiserver,
        } = asked;
        self.keep("disable-scheduler", &running.scheduler, &scheduler);
        self.keep("disable-cloud-controller", &running.cloud_controller, &cloud_controller);
        self.keep("disable-kube-proxy", &running.kube_proxy, &kube_proxy);
        self.keep("disable-network-policy", &running.network_policy, &network_policy);
        self.keep("disable-helm-controller", &running.helm_controller, &helm_controller);
        self.keep("disable-controller-manager", &running.controller_manager, &controller_manager);
        self.keep("disable-apiserver", &running.apiserver, &apiserver);
    }

    fn keep_network(&mut self, running: &ClusterNetwork, asked: &ClusterNetwork) {
        let ClusterNetwork {
            cluster_cidrs,
            service_cidrs,
            node_ports,
            cluster_dns,
            cluster_domain,
            overlay,
            masquerade_ipv6,
            overlay_external,
        } = asked;
        self.keep("cluster-cidr", &running.cluster_cidrs, cluster_cidrs);
        self.keep("service-cidr", &running.service_cidrs, service_cidrs);
        self.keep("service-node-port-range", &running.node_ports, node_ports);
        self.keep("cluster-dns", &running.cluster_dns, cluster_dns);
        self.keep("cluster-domain", &running.cluster_domain, cluster_domain);
        self.keep("flannel-backend", &running.overlay, overlay);
        self.keep("flannel-ipv6-masq", &running.masquerade_ipv6, masquerade_ipv6);
        self.keep("flannel-external-ip", &running.overlay_external, overlay_external);
    }

    fn take_control_plane(&mut self, running: &mut ControlPlaneArgs, asked: ControlPlaneArgs) {
        let ControlPlaneArgs { kube_apiserver, kube_controller_manager, kube_scheduler } = asked;
        let of_front = |args: &ComponentArgs| READ_BY_FRONT.map(|name| args.value_of(name).map(str::to_owned));
        if of_front(&running.kube_apiserver) == of_front(&kube_apiserver) {
            self.take("kube-apiserver-arg", Effect::Programs, &mut running.kube_apiserver, kube_apiserver);
        } else {
            self.keep("kube-apiserver-arg", &running.kube_apiserver, &kube_apiserver);
        }
        let controller_manager = &mut running.kube_controller_manager;
        self.take("kube-controller-manager-arg", Effect::Programs, controller_manager, kube_controller_manager);
        self.take("kube-scheduler-arg", Effect::Programs, &mut running.kube_scheduler, kube_scheduler);
    }

    fn take_node(&mut self, running: &mut NodeConfig, asked: NodeConfig, taints_by: Effect) {
        let NodeConfig {
            name,
            with_node_id,
            bind_address,
            ips,
            external_ips,
            internal_dns,
            external_dns,
            labels,
            taints,
            resolv_conf,
            snapshotter,
            pause_image,
            default_runtime,
            overlay_interface,
            cni_conf,
            protect_kernel_defaults,
            nonroot_devices,
            registries,
            default_registry_endpoint,
            airgap_registries,
            kubelet_args,
            kubelet_config,
            kubelet_config_dir,
            kube_proxy_args,
            kube_proxy_config,
            // It tells how the process was started.
            provenance: _,
        } = asked;
        self.keep("node-name", &running.name, &name);
        self.keep("with-node-id", &running.with_node_id, &with_node_id);
        self.keep("bind-address", &running.bind_address, &bind_address);
        self.keep("node-ip", &running.ips, &ips);
        self.keep("node-external-ip", &running.external_ips, &external_ips);
        self.keep("snapshotter", &running.snapshotter, &snapshotter);
        self.keep("flannel-iface", &running.overlay_interface, &overlay_interface);
        self.keep("flannel-cni-conf", &running.cni_conf, &cni_conf);
        self.take("node-label", Effect::Labels, &mut running.labels, labels);
        self.take("node-taint", taints_by, &mut running.taints, taints);
        let programs = Effect::Programs;
        self.take("node-internal-dns", programs, &mut running.internal_dns, internal_dns);
        self.take("node-external-dns", programs, &mut running.external_dns, external_dns);
        self.take("resolv-conf", programs, &mut running.resolv_conf, resolv_conf);
        self.take("pause-image", programs, &mut running.pause_image, pause_image);
        self.take("default-runtime", programs, &mut running.default_runtime, default_runtime);
        self.take("protect-kernel-defaults", programs, &mut running.protect_kernel_defaults, protect_kernel_defaults);
        self.take("nonroot-devices", programs, &mut running.nonroot_devices, nonroot_devices);
        self.take("private-registry", programs, &mut running.registries, registries);
        let default_endpoint = &mut running.default_registry_endpoint;
        self.take("disable-default-registry-endpoint", programs, default_endpoint, default_registry_endpoint);
        self.take("airgap-extra-registry", programs, &mut running.airgap_registries, airgap_registries);
        self.take("kubelet-arg", programs, &mut running.kubelet_args, kubelet_args);
        self.take("kubelet-arg", programs, &mut running.kubelet_config, kubelet_config);
        self.take("kubelet-arg", programs, &mut running.kubelet_config_dir, kubelet_config_dir);
        self.take("kube-proxy-arg", programs, &mut running.kube_proxy_args, kube_proxy_args);
        self.take("kube-proxy-arg", programs, &mut running.kube_proxy_config, kube_proxy_config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    /// What a server that was started with `before` makes of `after`: what it goes on by, and each effect with its flags.
    fn server(before: &[&str], after: &[&str]) -> (ServerConfig, String) {
        let host = Host::new();
        let [before, after] = [before, after].map(|args| host.server(args).expect("a valid configuration").0);
        let Reloaded { config, changes } = before.reloaded(after);
        (config, told(&changes))
    }

    fn told(changes: &Changes) -> String {
        let all = [Effect::Programs, Effect::Labels, Effect::Taints, Effect::Registration, Effect::NextStart];
        let told = all.iter().filter_map(|effect| Some(format!("{effect:?}: {}", changes.flags(|is| is == *effect)?)));
        told.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn nothing_changes_where_the_same_is_asked() {
        let args = ["--node-label=a=b", "--kubelet-arg=v=4", "--tls-san=example.com", "--disable=traefik"];
        assert_eq!(server(&args, &args).1, "");
    }

    #[test]
    fn every_kind_of_change_has_its_effect() {
        for (before, after, effect) in [
            ("", "--node-label=site=two", "Labels: node-label"),
            ("--node-label=site=one", "--node-label=site=two", "Labels: node-label"),
            ("--node-taint=a=b:NoSchedule", "", "Taints: node-taint"),
            ("", "--kubelet-arg=max-pods=50", "Programs: kubelet-arg"),
            ("--kubelet-arg=config=/one", "--kubelet-arg=config=/two", "Programs: kubelet-arg"),
            ("", "--kube-proxy-arg=v=4", "Programs: kube-proxy-arg"),
            ("", "--kube-apiserver-arg=v=4", "Programs: kube-apiserver-arg"),
            ("", "--kube-scheduler-arg=v=4", "Programs: kube-scheduler-arg"),
            ("", "-v=4", "Programs: v"),
            ("", "--pause-image=example.com/pause:1", "Programs: pause-image"),
            // The front would go by the old one.
            ("", "--kube-apiserver-arg=tls-min-version=VersionTLS13", "NextStart: kube-apiserver-arg"),
            ("", "--bind-address=127.0.0.1", "NextStart: bind-address"),
            ("", "--disable-scheduler", "NextStart: disable-scheduler"),
            ("", "--snapshot-schedule-cron=0 0 * * *", "NextStart: snapshot-schedule-cron"),
            ("", "--token=another", "NextStart: token"),
            ("", "--node-name=another", "NextStart: node-name"),
            ("", "--disable-agent", "NextStart: disable-agent"),
            ("--disable-agent", "--disable-agent --node-ip=192.0.2.1", "NextStart: node-ip"),
        ] {
            let [before, after] = [before, after].map(words);
            assert_eq!(server(&before, &after).1, effect, "{before:?} to {after:?}");
        }
    }

    /// A flag a word, but for values with spaces.
    fn words(text: &str) -> Vec<&str> {
        if text.contains("cron") { vec![text] } else { text.split_whitespace().collect() }
    }

    #[test]
    fn what_waits_for_the_next_start_stays_as_it_was() {
        let (config, told) = server(&["--tls-san=one"], &["--tls-san=two", "--node-label=site=two"]);
        assert_eq!(config.tls_sans, ["one"]);
        assert_eq!(config.node.expect("a server is a node").labels, [("site".to_owned(), "two".to_owned())]);
        assert_eq!(told, "Labels: node-label; NextStart: tls-san");
    }

    #[test]
    fn an_agent_tells_of_taints_that_it_may_not_set() {
        let host = Host::new();
        let agent = |more: &[&str]| {
            let args = [&["--server=https://192.0.2.1:6443", "--token=t"], more].concat();
            host.agent(&args).expect("a valid configuration").0
        };
        let Reloaded { config, changes } = agent(&[]).reloaded(agent(&["--node-taint=a=b:NoSchedule", "-v=2"]));
        assert_eq!(config.node.taints.len(), 1, "for when it registers again");
        assert_eq!(told(&changes), "Programs: v; Registration: node-taint");
    }
}
