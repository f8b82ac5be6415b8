//! What `k3s server` was asked to be, after every source was merged and checked.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use crate::{
    addons::{Addon, AddonsConfig},
    args::ComponentArgs,
    datastore::Datastore,
    environment::Environment,
    error::{Error, Warning},
    grammar::{is_certificate_name, is_dns_subdomain},
    network::{ClusterNetwork, NodeMasks, address, host_address, port, reached_at},
    node::NodeConfig,
    resources::ProfileChoice,
    secret::Secret,
    snapshots::{ClusterReset, SnapshotConfig},
    token,
    values::Values,
};

/// A server's whole configuration.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Root of all state (`--data-dir`); server state lies in `server/` below it, agent state in `agent/`.
    pub data_dir: PathBuf,
    /// Where the front listens (`--bind-address`).
    pub bind_address: IpAddr,
    /// The front's port (`--https-listen-port`); kube-apiserver itself listens on loopback, one above.
    pub https_listen_port: u16,
    /// The port of the load balancer on loopback (`--lb-server-port`), which a server without kube-apiserver has in its place.
    pub balancer_port: u16,
    /// The address kube-apiserver publishes for itself (`--advertise-address`); the node's address if `None`.
    pub advertise_address: Option<IpAddr>,
    /// The port it publishes (`--advertise-port`).
    pub advertise_port: u16,
    /// Further names and addresses on serving certificates (`--tls-san`).
    pub tls_sans: Vec<String>,
    /// The address plan.
    pub network: ClusterNetwork,
    /// Which connections of the control plane go through nodes' tunnels (`--egress-selector-mode`).
    pub egress_mode: EgressMode,
    /// Where cluster state is kept (`--datastore-endpoint`).
    pub datastore: Datastore,
    /// Its snapshots.
    pub snapshots: SnapshotConfig,
    /// What to do instead of running (`--cluster-reset`).
    pub cluster_reset: Option<ClusterReset>,
    /// The password part of the server token, where one was given (`--token`, `--token-file`).
    pub token: Option<Secret>,
    /// The same for agents (`--agent-token`, `--agent-token-file`).
    pub agent_token: Option<Secret>,
    /// The administrator's kubeconfig.
    pub kubeconfig: KubeconfigOutput,
    /// Whether `/metrics` shows what k3s itself counts, here beside kube-apiserver's and on agents alone (`--supervisor-metrics`).
    pub supervisor_metrics: bool,
    /// Whether this server sets up encryption of Secrets where there is none yet (`--secrets-encryption`). What is set up counts without it.
    pub secrets_encryption: bool,
    /// How keys to come encrypt them (`--secrets-encryption-provider`).
    pub encryption_provider: EncryptionProvider,
    /// What it deploys by itself.
    pub addons: AddonsConfig,
    /// Control-plane parts left out (`--disable-scheduler` and its like).
    pub disabled: DisabledParts,
    /// Users' arguments for the control plane (`--kube-apiserver-arg` and its like).
    pub args: ControlPlaneArgs,
    /// The node this server also is; `None` with `--disable-agent`.
    pub node: Option<NodeConfig>,
    /// The node's name even where there is no node: the server's own name in certificates and leases. Under `--with-node-id` it
    /// still lacks the id.
    pub node_name: String,
    /// The server's own addresses, with a node or without (`--node-ip`); empty means: found at start from the default route.
    pub ips: Vec<IpAddr>,
    /// Where the outside reaches it (`--node-external-ip`).
    pub external_ips: Vec<IpAddr>,
    /// How much memory programs are set up for (`--resource-profile`).
    pub resource_profile: ProfileChoice,
    /// Our own log tells details (`--debug`).
    pub debug: bool,
    /// klog verbosity for children (`-v`), 0 is their default.
    pub verbosity: u8,
}

impl ServerConfig {
    /// The port on loopback where kube-apiserver is reached, as in k3s: its own, which is the one above the front's, or that of the load
    /// balancer in front of other servers'.
    pub fn apiserver_port(&self) -> u16 {
        if self.disabled.apiserver { self.balancer_port } else { self.https_listen_port + 1 }
    }

    /// Where the front is reached from this host.
    pub fn reached_at(&self) -> IpAddr {
        reached_at(self.bind_address)
    }

    /// Where the API is published if not at the node's own address: as configured, else where the outside reaches the node.
    pub fn published_at(&self) -> Option<IpAddr> {
        self.advertise_address.or(self.external_ips.first().copied())
    }

    /// A NodePort that a Service could take from one of the node's own listeners: k3s lets such ranges pass, and many use them.
    pub(crate) fn node_port_in_use(&self) -> Option<Warning> {
        let beside = if self.disabled.apiserver { "the load balancer" } else { "kube-apiserver" };
        let own = [(self.https_listen_port, "the server"), (self.apiserver_port(), beside)];
        let (port, owner) = own.iter().chain(TAKEN_PORTS).find(|(port, _)| self.network.node_ports.contains(*port))?;
        Some(Warning::NodePortInUse { range: self.network.node_ports, port: *port, owner })
    }

    pub(crate) fn from_values(values: &Values, environment: &Environment) -> Result<Self, Error> {
        let data_dir = values.text("data-dir").path(environment)?;
        let addons = AddonsConfig::from_values(values, &data_dir, environment)?;
        let args = ControlPlaneArgs::from_values(values)?;
        let node = NodeConfig::from_values(values, environment)?;

        let network = ClusterNetwork::from_values(values, node_masks(values, &args)?, !addons.has(Addon::Coredns))?;
        for (flag, addresses) in [("node-ip", &node.ips), ("node-external-ip", &node.external_ips)] {
            for (given, address) in values.items(flag).iter().zip(addresses) {
                network.refuse_inside(given, *address)?;
            }
        }
        if !values.is_on("disable-agent") {
            network.refuse_missing(values, &node.ips)?;
        }
        let https_listen_port = listen_port(values)?;
        let advertise_address = match values.given("advertise-address") {
            Some(given) => {
                let address = given.parse(|text| address(text).and_then(|_| host_address(text)))?;
                network.refuse_inside(given, address)?;
                Some(address)
            }
            None => None,
        };
        check_accepted(values)?;

        let datastore = Datastore::from_values(values, &data_dir, environment)?;
        let token = token::find(values, "token", "token-file", environment)?;
        let agent_token = token::find(values, "agent-token", "agent-token-file", environment)?;
        Ok(Self {
            bind_address: values.text("bind-address").parse(address)?.into(),
            https_listen_port,
            balancer_port: balancer_port(values, https_listen_port)?,
            advertise_address,
            advertise_port: match values.given("advertise-port") {
                Some(given) => given.parse(port)?,
                None => https_listen_port,
            },
            tls_sans: values.each("tls-san", certificate_name)?,
            network,
            egress_mode: values.text("egress-selector-mode").parse(str::parse)?,
            snapshots: SnapshotConfig::from_values(values, &data_dir, &datastore, environment)?,
            cluster_reset: ClusterReset::from_values(values, &datastore, environment)?,
            datastore,
            token: token.as_ref().map(token::password).transpose()?,
            agent_token: agent_token.as_ref().map(token::password).transpose()?,
            kubeconfig: KubeconfigOutput::from_values(values, environment)?,
            supervisor_metrics: values.is_on("supervisor-metrics"),
            secrets_encryption: secrets_encryption(values, &args)?,
            encryption_provider: values.text("secrets-encryption-provider").parse(str::parse)?,
            addons,
            disabled: DisabledParts {
                scheduler: values.is_on("disable-scheduler"),
                cloud_controller: values.is_on("disable-cloud-controller"),
                kube_proxy: values.is_on("disable-kube-proxy"),
                network_policy: values.is_on("disable-network-policy"),
                helm_controller: values.is_on("disable-helm-controller"),
                controller_manager: values.is_on("disable-controller-manager"),
                apiserver: values.is_on("disable-apiserver"),
            },
            args,
            node_name: node.name.clone(),
            ips: node.ips.clone(),
            external_ips: node.external_ips.clone(),
            node: (!values.is_on("disable-agent")).then_some(node),
            resource_profile: values.text("resource-profile").parse(str::parse)?,
            debug: values.is_on("debug"),
            verbosity: values.verbosity()?,
            data_dir,
        })
    }
}

/// Which connections of the control plane go through the tunnels that nodes keep to their servers. The others are dialled from the
/// server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressMode {
    /// Those to kubelets.
    Agent,
    /// Those to kubelets and to pods, of which nodes let through their own.
    Pod,
    /// Those to kubelets and to pods, of which nodes let through all of the cluster.
    Cluster,
    /// None; nodes keep their tunnels all the same, to see which servers live.
    Disabled,
}

impl EgressMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Pod, Self::Cluster, Self::Disabled];

    /// As `--egress-selector-mode` takes it, and as servers tell it to agents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Pod => "pod",
            Self::Cluster => "cluster",
            Self::Disabled => "disabled",
        }
    }

    /// Whether pods are reached through tunnels, too.
    pub fn includes_pods(self) -> bool {
        matches!(self, Self::Pod | Self::Cluster)
    }
}

impl FromStr for EgressMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("`{text}` is not a mode; use agent, pod, cluster or disabled"))
    }
}

/// How a key encrypts Secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionProvider {
    /// AES in CBC mode.
    AesCbc,
    /// XSalsa20 and Poly1305.
    Secretbox,
}

impl EncryptionProvider {
    const ALL: [Self; 2] = [Self::AesCbc, Self::Secretbox];

    /// As `--secrets-encryption-provider` takes it, and as kube-apiserver's configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AesCbc => "aescbc",
            Self::Secretbox => "secretbox",
        }
    }

    /// k3s' name for a cluster's first key, and the beginning of the others' names.
    pub fn first_key(self) -> &'static str {
        match self {
            Self::AesCbc => "aescbckey",
            Self::Secretbox => "secretboxkey",
        }
    }
}

impl FromStr for EncryptionProvider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|provider| provider.name() == text);
        found.ok_or_else(|| format!("`{text}` is not a provider; use aescbc or secretbox"))
    }
}

/// Where the administrator's kubeconfig goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeconfigOutput {
    /// The file (`--write-kubeconfig`), `/etc/rancher/k3s/k3s.yaml` by default.
    pub path: PathBuf,
    /// Its permission bits (`--write-kubeconfig-mode`), 0600 by default.
    pub mode: u32,
    /// Its group, by name or number (`--write-kubeconfig-group`).
    pub group: Option<String>,
}

impl KubeconfigOutput {
    fn from_values(values: &Values, environment: &Environment) -> Result<Self, Error> {
        let mode = values.text("write-kubeconfig-mode").parse(|text| {
            let digits = text.strip_prefix("0o").unwrap_or(text);
            let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
            mode.ok_or_else(|| format!("`{text}` is not a file mode; write it in octal, such as 0644"))
        })?;
        let group = values.given("write-kubeconfig-group").map(|given| given.text.clone());
        Ok(Self { path: values.text("write-kubeconfig").path(environment)?, mode, group })
    }
}

/// Parts of a server that can be switched off one by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DisabledParts {
    /// `--disable-scheduler`
    pub scheduler: bool,
    /// `--disable-cloud-controller`
    pub cloud_controller: bool,
    /// `--disable-kube-proxy`
    pub kube_proxy: bool,
    /// `--disable-network-policy`
    pub network_policy: bool,
    /// `--disable-helm-controller`
    pub helm_controller: bool,
    /// `--disable-controller-manager`
    pub controller_manager: bool,
    /// `--disable-apiserver`
    pub apiserver: bool,
}

/// Users' arguments, one set a component, merged over our defaults as k3s does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlPlaneArgs {
    /// `--kube-apiserver-arg`
    pub kube_apiserver: ComponentArgs,
    /// `--kube-controller-manager-arg`
    pub kube_controller_manager: ComponentArgs,
    /// `--kube-scheduler-arg`
    pub kube_scheduler: ComponentArgs,
}

/// What the front, the datastore and kube-apiserver have agreed on between themselves. With other header names a client could name
/// itself anyone, since the front strips only those that it sets.
const RESERVED_FOR_KUBE_APISERVER: [&str; 9] = [
    "bind-address",
    "endpoint-reconciler-type",
    "etcd-servers",
    "http2-max-streams-per-connection",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-username-headers",
    "secure-port",
];

impl ControlPlaneArgs {
    fn from_values(values: &Values) -> Result<Self, Error> {
        let kube_apiserver = values.component_args("kube-apiserver-arg")?;
        let reserved = RESERVED_FOR_KUBE_APISERVER.iter().find(|name| kube_apiserver.value_of(name).is_some());
        if let (Some(name), Some(given)) = (reserved, values.given("kube-apiserver-arg")) {
            return Err(given.invalid(format!("{name} is settled between k3s and kube-apiserver; leave it out")));
        }
        Ok(Self {
            kube_apiserver,
            kube_controller_manager: values.component_args("kube-controller-manager-arg")?,
            kube_scheduler: values.component_args("kube-scheduler-arg")?,
        })
    }
}

/// Refuses two configurations of encryption: kube-apiserver would go by the user's, and k3s rotate the keys of its own.
fn secrets_encryption(values: &Values, args: &ControlPlaneArgs) -> Result<bool, Error> {
    let on = values.is_on("secrets-encryption");
    match values.given("secrets-encryption") {
        Some(given) if on && args.kube_apiserver.value_of("encryption-provider-config").is_some() => {
            Err(given
                .invalid("kube-apiserver is given an encryption-provider-config as well; leave out one of the two"))
        }
        _ => Ok(on),
    }
}

/// The prefix lengths of one node's pod ranges, which only kube-controller-manager's own flags change.
fn node_masks(values: &Values, args: &ControlPlaneArgs) -> Result<NodeMasks, Error> {
    let mask = |names: &[&str], default: u8, longest: u8| {
        let args = &args.kube_controller_manager;
        let Some((name, mask)) = names.iter().find_map(|name| Some((name, args.value_of(name)?))) else {
            return Ok(default);
        };
        match (mask.parse::<u8>(), values.given("kube-controller-manager-arg")) {
            (Ok(mask), _) if (1..=longest).contains(&mask) => Ok(mask),
            (_, Some(given)) => {
                Err(given.invalid(format!("{name}={mask} is not a prefix length; write one such as {default}")))
            }
            (_, None) => Ok(default),
        }
    };
    Ok(NodeMasks {
        v4: mask(&["node-cidr-mask-size-ipv4", "node-cidr-mask-size"], 24, 30)?,
        v6: mask(&["node-cidr-mask-size-ipv6"], 64, 126)?,
    })
}

fn listen_port(values: &Values) -> Result<u16, Error> {
    let given = values.text("https-listen-port");
    given.parse(|text| {
        let port = port(text)?;
        let Some(above) = port.checked_add(1) else {
            return Err("65535 leaves no port above it for kube-apiserver; choose a lower one".to_owned());
        };
        match TAKEN_PORTS.iter().find(|(taken, _)| [port, above].contains(taken)) {
            Some((taken, owner)) => Err(format!(
                "{port} will not do, as it and the port above are used here and {taken} is {owner}'s; choose another one"
            )),
            None => Ok(port),
        }
    })
}

/// The load balancer's port, which only a server without kube-apiserver listens on.
fn balancer_port(values: &Values, front: u16) -> Result<u16, Error> {
    values.text("lb-server-port").parse(|text| {
        let port = port(text)?;
        if !values.is_on("disable-apiserver") {
            return Ok(port);
        }
        let taken = TAKEN_PORTS.iter().copied().chain([(front, "the server")]).find(|(taken, _)| *taken == port);
        match taken {
            Some((_, owner)) => Err(format!("{port} is {owner}'s; choose another port")),
            None => Ok(port),
        }
    })
}

/// Refuses wrong values of flags that change nothing yet.
fn check_accepted(values: &Values) -> Result<(), Error> {
    values.text("servicelb-priority-class").parse(|text| {
        is_dns_subdomain(text)
            .then_some(())
            .ok_or_else(|| format!("`{text}` is not a priority class; write the name of one"))
    })
}

fn certificate_name(text: &str) -> Result<String, String> {
    let valid = text.parse::<IpAddr>().is_ok() || is_certificate_name(text);
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| format!("`{text}` is neither a DNS name nor an address; write one without scheme and port"))
}

/// Where Kubernetes' components listen on every node.
const TAKEN_PORTS: &[(u16, &str)] = &[
    (10010, "containerd"),
    (10248, "kubelet"),
    (10249, "kube-proxy"),
    (10250, "kubelet"),
    (10256, "kube-proxy"),
    (10257, "kube-controller-manager"),
    (10259, "kube-scheduler"),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        network::{Overlay, PortRange},
        test_host::Host,
    };

    #[test]
    fn nothing_given_is_what_k3s_does() {
        let (config, warnings) = Host::new().server(&[]).expect("the defaults are valid");
        assert_eq!(warnings, []);
        assert_eq!(config.data_dir, Path::new("/var/lib/rancher/k3s"));
        assert_eq!(config.bind_address.to_string(), "0.0.0.0");
        assert_eq!((config.https_listen_port, config.apiserver_port(), config.advertise_port), (6443, 6444, 6443));
        assert_eq!(config.network.cluster_cidrs[0].to_string(), "10.42.0.0/16");
        assert_eq!(config.network.service_cidrs[0].to_string(), "10.43.0.0/16");
        assert_eq!(config.network.kubernetes_service_ip().to_string(), "10.43.0.1");
        assert_eq!(config.network.cluster_dns[0].to_string(), "10.43.0.10");
        assert_eq!(config.network.node_ports, PortRange { first: 30000, last: 32767 });
        assert_eq!((config.network.cluster_domain.as_str(), config.network.overlay), ("cluster.local", Overlay::Vxlan));
        assert_eq!(config.datastore, Datastore::Sqlite { path: "/var/lib/rancher/k3s/server/db/state.db".into() });
        assert_eq!(
            (config.kubeconfig.path.as_path(), config.kubeconfig.mode),
            (Path::new("/etc/rancher/k3s/k3s.yaml"), 0o600)
        );
        assert!(config.token.is_none() && config.agent_token.is_none());
        let node = config.node.expect("a server is a node");
        assert_eq!((node.name.as_str(), node.with_node_id), ("pi", false));
        assert_eq!(node.registries, Path::new("/etc/rancher/k3s/registries.yaml"));
    }

    #[test]
    fn pods_and_services_may_have_both_families() {
        let args = [
            "--cluster-cidr=10.42.0.0/16,fd42::/56",
            "--service-cidr=10.43.0.0/16,fd43::/112",
            "--node-ip=192.0.2.7,2001:db8::7",
            "--flannel-ipv6-masq",
        ];
        let (config, _) = Host::new().server(&args).expect("a valid configuration");
        let texts = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&config.network.cluster_dns), ["10.43.0.10", "fd43::a"]);
        assert_eq!(texts(&config.node.expect("a server is a node").ips), ["192.0.2.7", "2001:db8::7"]);
        assert_eq!(config.network.cluster_cidrs[1].to_string(), "fd42::/56");
        assert!(config.network.masquerade_ipv6);
    }

    #[test]
    fn what_the_nixos_module_passes_is_understood() {
        let host = Host::new().named("Pi").file("token", "p@s$w0rd\n").file("extra.yaml", "with-node-id: true\n");
        let args = [
            "--token-file",
            "token",
            "--config",
            "extra.yaml",
            "--disable=coredns",
            "--disable=traefik,servicelb,mine",
            "--node-name=Edge.Example.com",
            "--node-label=tier=edge",
            "--node-label=tier=far-edge",
            "--node-taint=dedicated=gpu:NoSchedule",
            "--node-taint=alone:NoExecute",
            "--node-ip=192.0.2.7",
            "--node-external-ip=198.51.100.7",
            "--kubelet-arg=config=/nix/store/kubelet.yaml",
            "--cluster-cidr",
            "10.24.0.0/16",
        ];
        let (config, warnings) = host.server(&args).expect("a valid configuration");
        assert_eq!(warnings, []);
        assert_eq!(config.token.as_ref().map(Secret::expose), Some("p@s$w0rd"));
        assert_eq!(Vec::from_iter(&config.addons.disabled), ["coredns", "mine", "servicelb", "traefik"]);
        assert!(!config.addons.has(Addon::Servicelb) && config.addons.has(Addon::Runtimes));
        assert_eq!(config.node_name, "edge.example.com");
        assert_eq!(config.ips, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.external_ips, ["198.51.100.7".parse::<IpAddr>().unwrap()]);
        let node = config.node.expect("a server is a node");
        assert!(node.with_node_id);
        assert_eq!(node.labels, [("tier".to_owned(), "far-edge".to_owned())]);
        assert_eq!(node.taints.len(), 2);
        assert_eq!(node.ips, ["192.0.2.7".parse::<IpAddr>().expect("an address")]);
        assert_eq!(node.kubelet_config.as_deref(), Some(Path::new("/nix/store/kubelet.yaml")));
    }

    #[test]
    fn a_smaller_range_for_each_node_allows_a_smaller_cluster_range() {
        let small = ["--cluster-cidr=10.42.0.0/25", "--kube-controller-manager-arg=node-cidr-mask-size=26"];
        assert!(Host::new().server(&small).is_ok());
        assert!(Host::new().server(&small[..1]).is_err());
    }

    #[test]
    fn every_way_to_reach_nodes() {
        let mode = |args: &[&str]| Host::new().server(args).expect("a valid configuration").0.egress_mode;
        assert_eq!(mode(&[]), EgressMode::Agent);
        for expected in EgressMode::ALL {
            assert_eq!(mode(&[&format!("--egress-selector-mode={}", expected.name())]), expected);
        }
    }

    #[test]
    fn secrets_are_encrypted_by_one_configuration() {
        let host = Host::new();
        let provider = |args: &[&str]| {
            host.server(args).map(|(config, _)| (config.secrets_encryption, config.encryption_provider))
        };
        assert_eq!(provider(&[]).unwrap(), (false, EncryptionProvider::AesCbc));
        let secretbox = ["--secrets-encryption", "--secrets-encryption-provider=secretbox"];
        assert_eq!(provider(&secretbox).unwrap(), (true, EncryptionProvider::Secretbox));
        let own = "--kube-apiserver-arg=encryption-provider-config=/etc/encryption.yaml";
        assert!(provider(&[own]).is_ok());
        let error = provider(&["--secrets-encryption", own]).unwrap_err().to_string();
        assert!(error.contains("leave out one of the two"), "{error}");
        let error = provider(&["--secrets-encryption-provider=kms"]).unwrap_err().to_string();
        assert!(error.contains("use aescbc or secretbox"), "{error}");
    }

    #[test]
    fn a_dns_of_ones_own_may_lie_outside_the_service_range() {
        let args = ["--cluster-dns=169.254.20.10", "--disable=coredns"];
        let (config, _) = Host::new().server(&args).expect("a valid configuration");
        assert_eq!(config.network.cluster_dns[0].to_string(), "169.254.20.10");
        assert!(Host::new().server(&args[..1]).is_err());
    }

    #[test]
    fn what_asks_for_the_state_of_things_is_accepted() {
        let accepted = [
            "--helm-job-image=registry.lan/klipper-helm",
            "--servicelb-priority-class=system-cluster-critical",
            "--prefer-bundled-bin",
            "--etcd-disable-snapshots",
            "--tls-san-security=true",
            "--image-credential-provider-config=/var/lib/rancher/credentialprovider/config.yaml",
            "--disable-selinux",
            "--secrets-encryption=false",
        ];
        assert!(Host::new().server(&accepted).is_ok());
    }
}
