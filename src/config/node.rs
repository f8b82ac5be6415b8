//! The node: what `k3s server` and `k3s agent` share.

use std::{
    fs::File,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    args::ComponentArgs,
    environment::Environment,
    error::{Error, Origin, Place},
    flags::{Flag, Role, SELINUX},
    grammar::{is_dns_subdomain, is_forbidden_to_kubelet, is_label_value, is_qualified_name},
    network::{address, host_address, port, reached_at},
    provenance::Provenance,
    values::{Given, Values},
};

/// A node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name, lower case; under `--with-node-id` it still lacks the id.
    pub name: String,
    /// The node's id belongs after the name, with a dash between them (`--with-node-id`).
    pub with_node_id: bool,
    /// Where kubelet listens (`--bind-address`).
    pub bind_address: IpAddr,
    /// Its own addresses, one per family, the primary first (`--node-ip`); empty means: found at start from the default route.
    pub ips: Vec<IpAddr>,
    /// Addresses the outside reaches it by (`--node-external-ip`).
    pub external_ips: Vec<IpAddr>,
    /// Names for the InternalDNS addresses (`--node-internal-dns`).
    pub internal_dns: Vec<String>,
    /// Names for the ExternalDNS addresses (`--node-external-dns`).
    pub external_dns: Vec<String>,
    /// Labels set at registration (`--node-label`), in the given order, each key once.
    pub labels: Vec<(String, String)>,
    /// Taints set at registration (`--node-taint`).
    pub taints: Vec<Taint>,
    /// Where pods' resolv.conf comes from (`--resolv-conf`); chosen at start if `None`.
    pub resolv_conf: Option<PathBuf>,
    /// containerd's snapshotter (`--snapshotter`).
    pub snapshotter: Snapshotter,
    /// The sandbox image (`--pause-image`); ours if `None`.
    pub pause_image: Option<String>,
    /// The runtime of pods that name none (`--default-runtime`).
    pub default_runtime: Option<String>,
    /// The interface whose address the overlay uses (`--flannel-iface`).
    pub overlay_interface: Option<String>,
    /// A CNI configuration list to install instead of ours (`--flannel-cni-conf`).
    pub cni_conf: Option<PathBuf>,
    /// kubelet fails rather than change kernel settings (`--protect-kernel-defaults`).
    pub protect_kernel_defaults: bool,
    /// Devices of pods that run as non-root belong to them (`--nonroot-devices`).
    pub nonroot_devices: bool,
    /// Mirrors and credentials (`--private-registry`).
    pub registries: PathBuf,
    /// Registries that have mirrors are also asked themselves (`--disable-default-registry-endpoint` not given).
    pub default_registry_endpoint: bool,
    /// Registries as whose images imported ones are known too (`--airgap-extra-registry`).
    pub airgap_registries: Vec<String>,
    /// Users' arguments for kubelet (`--kubelet-arg`), without those of the next two.
    pub kubelet_args: ComponentArgs,
    /// A user's configuration file for kubelet (`--kubelet-arg=config=FILE`).
    pub kubelet_config: Option<PathBuf>,
    /// A user's folder of drop-ins for kubelet (`--kubelet-arg=config-dir=DIR`).
    pub kubelet_config_dir: Option<PathBuf>,
    /// Users' arguments for kube-proxy (`--kube-proxy-arg`), without that of the next.
    pub kube_proxy_args: ComponentArgs,
    /// A user's configuration file for kube-proxy (`--kube-proxy-arg=config=FILE`).
    pub kube_proxy_config: Option<PathBuf>,
    /// How the node was started, for its annotations.
    pub provenance: Provenance,
}

/// A taint as `key=value:Effect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// A qualified name.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// What it does to pods that do not tolerate it.
    pub effect: TaintEffect,
}

/// The effects Kubernetes knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaintEffect {
    /// `NoSchedule`
    NoSchedule,
    /// `PreferNoSchedule`
    PreferNoSchedule,
    /// `NoExecute`
    NoExecute,
}

/// containerd's snapshotters that need nothing beside containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// The default.
    Overlayfs,
    /// Plain copies, for file systems without overlay support.
    Native,
    /// On a btrfs state directory.
    Btrfs,
    /// On a zfs state directory.
    Zfs,
}

impl NodeConfig {
    /// Takes the name of `running`, the same node with its name as it was settled, if only its id makes a difference.
    pub fn settle_name(&mut self, running: &Self) {
        let is_with_id = |id: &str| running.with_node_id && id.starts_with('-');
        if self.with_node_id && running.name.strip_prefix(&self.name).is_some_and(is_with_id) {
            self.name.clone_from(&running.name);
        }
    }

    /// Where this machine reaches its own kubelet.
    pub fn kubelet_address(&self) -> IpAddr {
        reached_at(self.bind_address)
    }

    pub(crate) fn from_values(values: &Values, environment: &Environment) -> Result<Self, Error> {
        if let Some(given) = values.given("disable-selinux").filter(|given| given.text == "false") {
            return Err(given.not_served(SELINUX));
        }
        let with_node_id = values.is_on("with-node-id");
        let mut ips = Vec::<IpAddr>::new();
        for given in values.items("node-ip") {
            let ip = given.parse(host_address)?;
            match (ip, ips.len()) {
                (IpAddr::V4(_), 0) | (IpAddr::V6(_), 1) => ips.push(ip),
                (IpAddr::V6(_), 0) => {
                    let problem = format!(
                        "a node without IPv4, or with IPv6 ({ip}) first, is not served by this version; give an IPv4 address first"
                    );
                    return Err(given.invalid(problem));
                }
                _ => {
                    let problem = format!(
                        "`{ip}` is one address too many; give an IPv4 address, and an IPv6 address after it if pods have both"
                    );
                    return Err(given.invalid(problem));
                }
            }
        }
        let (kubelet_args, [kubelet_config, kubelet_config_dir]) =
            component(values, "kubelet-arg", ["config", "config-dir"], environment)?;
        let (kube_proxy_args, [kube_proxy_config]) = component(values, "kube-proxy-arg", ["config"], environment)?;
        Ok(Self {
            name: node_name(values, environment, with_node_id)?,
            with_node_id,
            bind_address: values.text("bind-address").parse(address)?.into(),
            ips,
            external_ips: values.each("node-external-ip", host_address)?,
            internal_dns: values.each("node-internal-dns", dns_name)?,
            external_dns: values.each("node-external-dns", dns_name)?,
            labels: labels(values)?,
            taints: values.each("node-taint", str::parse)?,
            resolv_conf: readable(values, "resolv-conf", environment)?,
            snapshotter: values.text("snapshotter").parse(str::parse)?,
            pause_image: image(values, "pause-image")?,
            default_runtime: values.given("default-runtime").map(|given| given.text.clone()),
            overlay_interface: values.given("flannel-iface").map(|given| given.parse(interface)).transpose()?,
            cni_conf: readable(values, "flannel-cni-conf", environment)?,
            protect_kernel_defaults: values.is_on("protect-kernel-defaults"),
            nonroot_devices: values.is_on("nonroot-devices"),
            registries: registries(values, environment)?,
            default_registry_endpoint: !values.is_on("disable-default-registry-endpoint"),
            airgap_registries: values.each("airgap-extra-registry", registry)?,
            kubelet_args,
            kubelet_config,
            kubelet_config_dir,
            kube_proxy_args,
            kube_proxy_config,
            provenance: values.provenance.clone(),
        })
    }
}

impl FromStr for Taint {
    type Err = String;

    /// `key=value:Effect` or `key:Effect`.
    fn from_str(text: &str) -> Result<Self, String> {
        let problem =
            || format!("`{text}` is not a taint; write it as KEY=VALUE:NoSchedule, :PreferNoSchedule or :NoExecute");
        let (rest, effect) = text.rsplit_once(':').ok_or_else(problem)?;
        let effect = match effect {
            "NoSchedule" => TaintEffect::NoSchedule,
            "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
            "NoExecute" => TaintEffect::NoExecute,
            _ => return Err(problem()),
        };
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        if !is_qualified_name(key) || !is_label_value(value) {
            return Err(problem());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect })
    }
}

impl FromStr for Snapshotter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "overlayfs" => Ok(Self::Overlayfs),
            "native" => Ok(Self::Native),
            "btrfs" => Ok(Self::Btrfs),
            "zfs" => Ok(Self::Zfs),
            _ => Err(format!("`{text}` is not a snapshotter; use overlayfs, native, btrfs or zfs")),
        }
    }
}

fn node_name(values: &Values, environment: &Environment, with_id: bool) -> Result<String, Error> {
    let given = values.given("node-name").cloned().unwrap_or_else(|| Given {
        place: Place { flag: "node-name", origin: Origin::Hostname },
        text: environment.hostname.clone(),
    });
    // The id is a dash and eight characters; the whole is the value of the label kubernetes.io/hostname.
    let longest = if with_id { 63 - 9 } else { 63 };
    given.parse(|text| {
        let name = text.to_lowercase();
        if name == "localhost" || name.starts_with("localhost.") {
            Err(format!("`{name}` names every host; name this node with --node-name"))
        } else if !is_dns_subdomain(&name) {
            Err(format!("`{name}` is not a node's name; give --node-name letters, digits, dashes and dots"))
        } else if name.len() > longest {
            Err(format!("`{name}` is longer than {longest} characters; give a shorter --node-name"))
        } else {
            Ok(name)
        }
    })
}

fn labels(values: &Values) -> Result<Vec<(String, String)>, Error> {
    let mut labels = Vec::<(String, String)>::new();
    for (key, value) in values.each("node-label", label)? {
        match labels.iter_mut().find(|label| label.0 == key) {
            Some(label) => label.1 = value,
            None => labels.push((key, value)),
        }
    }
    Ok(labels)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, value)| is_qualified_name(key) && is_label_value(value))
        .ok_or_else(|| format!("`{text}` is not a label; write it as KEY=VALUE"))?;
    if is_forbidden_to_kubelet(key) {
        return Err(format!("kubelet may not set `{key}` on its own node; set it with `k3s kubectl label node`"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn dns_name(text: &str) -> Result<String, String> {
    let problem = || format!("`{text}` is not a DNS name; write one such as node-1.example.com");
    is_dns_subdomain(text).then(|| text.to_owned()).ok_or_else(problem)
}

fn interface(text: &str) -> Result<String, String> {
    // IFNAMSIZ leaves fifteen bytes.
    let valid = text.len() <= 15
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    let problem = || format!("`{text}` is not an interface's name; use one that `ip link` shows");
    valid.then(|| text.to_owned()).ok_or_else(problem)
}

fn image(values: &Values, name: &'static str) -> Result<Option<String>, Error> {
    let parse = |text: &str| {
        let valid = !text.contains("://") && !text.contains(char::is_whitespace);
        valid
            .then(|| text.to_owned())
            .ok_or_else(|| format!("`{text}` is not an image's name; write it as HOST/NAME:TAG"))
    };
    values.given(name).map(|given| given.parse(parse)).transpose()
}

/// A component's arguments, and the paths in those called `names`; of several the last counts, as in k3s. Files of configuration go to the
/// component with ours, so they are none of its arguments, and whoever puts them together reads them.
fn component<const N: usize>(
    values: &Values,
    flag: &'static str,
    names: [&str; N],
    environment: &Environment,
) -> Result<(ComponentArgs, [Option<PathBuf>; N]), Error> {
    let mut paths = [const { None }; N];
    let mut args = Vec::new();
    for (given, arg) in values.list(flag).zip(values.component_args(flag)?.iter()) {
        let Some(at) = names.iter().position(|name| *name == arg.name) else {
            args.push(arg.clone());
            continue;
        };
        if arg.value.is_empty() {
            return Err(given.invalid(format!("{} names nothing; write {0}=PATH", arg.name)));
        }
        let path = environment.path(&arg.value).map_err(|problem| given.invalid(problem))?;
        paths[at] = Some(path);
    }
    Ok((args.into_iter().collect(), paths))
}

/// The file that a flag names, which has to be there.
fn readable(values: &Values, name: &'static str, environment: &Environment) -> Result<Option<PathBuf>, Error> {
    let Some(given) = values.given(name) else { return Ok(None) };
    let path = given.path(environment)?;
    try_to_read(&path).map_err(|error| given.unreadable(&path, error))?;
    Ok(Some(path))
}

/// A host, perhaps with a port or a path, that stands before the names of images.
pub(crate) fn registry(text: &str) -> Result<String, String> {
    let host = text.trim_end_matches('/');
    let (name, port_text) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let path = name.split_once('/').map_or("", |(_, path)| path);
    let valid = is_dns_subdomain(&name.split('/').next().unwrap_or_default().to_lowercase())
        && !path.contains(char::is_whitespace)
        && port_text.is_none_or(|text| port(text.split('/').next().unwrap_or_default()).is_ok());
    valid
        .then(|| host.to_owned())
        .ok_or_else(|| format!("`{text}` is not a registry; write it as registry.example.com:5000"))
}

/// The default file may be missing, as in k3s, also where somebody writes its name out.
fn registries(values: &Values, environment: &Environment) -> Result<PathBuf, Error> {
    let default = Flag::find(Role::Server, "private-registry").and_then(|flag| flag.default);
    let given = values.text("private-registry");
    let path = given.path(environment)?;
    if default.map(Path::new) != Some(&path) {
        try_to_read(&path).map_err(|error| given.unreadable(&path, error))?;
    }
    Ok(path)
}

/// Fails for what is missing, is a directory, or may not be read.
fn try_to_read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0]).map(drop)
}

#[cfg(test)]
mod tests {
    use crate::test_host::Host;

    #[test]
    fn components_files_are_none_of_their_arguments() {
        let host = Host::new();
        let args = [
            "--kubelet-arg=config=first",
            "--kubelet-arg=v=4",
            "--kubelet-arg=config=kubelet.yaml",
            "--kubelet-arg=config-dir=drop-ins",
            "--kube-proxy-arg=config=proxy.yaml",
        ];
        let node = host.server(&args).expect("a valid configuration").0.node.expect("a server is a node");
        let paths = [node.kubelet_config, node.kubelet_config_dir, node.kube_proxy_config];
        assert_eq!(paths, ["kubelet.yaml", "drop-ins", "proxy.yaml"].map(|name| Some(host.path(name))));
        let names = |args: &crate::args::ComponentArgs| args.iter().map(|arg| arg.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&node.kubelet_args), names(&node.kube_proxy_args)), (vec!["v".to_owned()], Vec::new()));
        let error = host.server(&["--kubelet-arg=config-dir="]).expect_err("it names nothing");
        assert_eq!(error.to_string(), "--kubelet-arg: config-dir names nothing; write config-dir=PATH");
    }
}
