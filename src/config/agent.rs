//! What `k3s agent` was asked to be, and the node: the part that it shares with `k3s server`.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    args::{ComponentArg, ComponentArgs},
    environment::Environment,
    error::{Error, Origin, Place},
    flags::{Flag, Role, Standing, nearest},
    grammar::{is_dns_subdomain, is_forbidden_to_kubelet, is_label_value, is_qualified_name},
    merge::{Given, Values},
    network::{address, host_address},
    provenance::Provenance,
    secret::Secret,
    token,
};

/// An agent's whole configuration.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Root of all state (`--data-dir`); an agent's lies in `agent/` below it.
    pub data_dir: PathBuf,
    /// The server to join (`--server`).
    pub server: ServerUrl,
    /// The whole token to join with (`--token`, `--token-file`); `None` where certificates of an earlier join are kept.
    pub token: Option<Secret>,
    /// Where the node's own listeners bind (`--bind-address`).
    pub bind_address: IpAddr,
    /// The load balancer's port on loopback (`--lb-server-port`).
    pub balancer_port: u16,
    /// The node itself.
    pub node: NodeConfig,
    /// Our own log tells details (`--debug`).
    pub debug: bool,
    /// klog verbosity for children (`-v`), 0 is their default.
    pub verbosity: u8,
}

/// Where a server answers: always over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// A name or an address.
    pub host: String,
    /// 443 unless given.
    pub port: u16,
}

/// A node's configuration.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The node's name, lower case; under `--with-node-id` it still lacks the id.
    pub name: String,
    /// The node's id belongs after the name, with a dash between them (`--with-node-id`).
    pub with_node_id: bool,
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
    /// Users' arguments for kubelet (`--kubelet-arg`).
    pub kubelet_args: ComponentArgs,
    /// Users' arguments for kube-proxy (`--kube-proxy-arg`).
    pub kube_proxy_args: ComponentArgs,
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

impl AgentConfig {
    pub(crate) fn from_values(values: &Values, environment: &Environment) -> Result<Self, Error> {
        let data_dir = environment.absolute(values.text("data-dir").text);
        let missing = |flag, problem: &str| Error::Invalid {
            place: Place { flag, origin: Origin::CommandLine },
            problem: problem.to_owned(),
        };
        let server = values.given("server").ok_or_else(|| {
            missing("server", "an agent needs a server to join; give its address as https://HOST:6443")
        })?;
        let token = token::find(values, "token", "token-file", environment)?;
        if token.is_none() && !has_joined(&data_dir) {
            return Err(missing("token", "an agent needs a token to join; give the one in server/token of the server"));
        }
        Ok(Self {
            data_dir,
            server: server.parse(str::parse)?,
            token: token.as_ref().map(token::joining).transpose()?,
            bind_address: values.text("bind-address").parse(address)?.into(),
            balancer_port: values.text("lb-server-port").parse(port)?,
            node: NodeConfig::from_values(values, environment)?,
            debug: values.is_on("debug"),
            verbosity: verbosity(values)?,
        })
    }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("`{text}` is not a server's address; write it as https://HOST:6443");
        let authority = text.strip_prefix("https://").ok_or_else(problem)?.trim_end_matches('/');
        let (host, port_text) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = port_text.map_or(Ok(443), port)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| problem())?.to_string(),
            None if is_dns_subdomain(&host.to_lowercase()) => host.to_lowercase(),
            None => return Err(problem()),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "https://{open}{}{close}:{}", self.host, self.port)
    }
}

impl NodeConfig {
    pub(crate) fn from_values(values: &Values, environment: &Environment) -> Result<Self, Error> {
        if let Some(given) = values.given("disable-selinux").filter(|given| given.text == "false")
            && let Some(Standing::Unserved(refusal)) = Flag::find(Role::Server, "selinux").map(|flag| flag.standing)
        {
            return Err(given.not_served(refusal));
        }
        let with_node_id = values.is_on("with-node-id");
        let mut ips = Vec::new();
        for given in values.items("node-ip") {
            ips.push(given.parse(host_address)?);
            if ips.len() > 1 {
                return Err(given.invalid(format!("`{}` is a second IPv4 address; give one", given.text)));
            }
        }
        Ok(Self {
            name: node_name(values, environment, with_node_id)?,
            with_node_id,
            ips,
            external_ips: each(values, "node-external-ip", host_address)?,
            internal_dns: each(values, "node-internal-dns", dns_name)?,
            external_dns: each(values, "node-external-dns", dns_name)?,
            labels: labels(values)?,
            taints: each(values, "node-taint", str::parse)?,
            resolv_conf: readable(values, "resolv-conf", environment)?,
            snapshotter: values.text("snapshotter").parse(str::parse)?,
            pause_image: image(values, "pause-image")?,
            default_runtime: values.given("default-runtime").map(|given| given.text.clone()),
            overlay_interface: values.given("flannel-iface").map(|given| given.parse(interface)).transpose()?,
            cni_conf: readable(values, "flannel-cni-conf", environment)?,
            protect_kernel_defaults: values.is_on("protect-kernel-defaults"),
            nonroot_devices: values.is_on("nonroot-devices"),
            registries: registries(values, environment)?,
            kubelet_args: component_args(values, "kubelet-arg")?,
            kube_proxy_args: component_args(values, "kube-proxy-arg")?,
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

/// All items of a list flag, each through `parse`.
pub(crate) fn each<T>(
    values: &Values,
    name: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Error> {
    values.items(name).iter().map(|given| given.parse(&parse)).collect()
}

/// A component's arguments; they are never split at commas.
pub(crate) fn component_args(values: &Values, name: &'static str) -> Result<ComponentArgs, Error> {
    let parse = |text: &str| text.parse::<ComponentArg>().map_err(|error| format!("`{text}` will not do: {error}"));
    values.list(name).map(|given| given.parse(parse)).collect()
}

pub(crate) fn verbosity(values: &Values) -> Result<u8, Error> {
    let problem = |text: &str| format!("`{text}` is not a level; write a number such as 2");
    values.text("v").parse(|text| text.parse().map_err(|_| problem(text)))
}

pub(crate) fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is not a port; write a number from 1 to 65535"))
}

/// A name that is not one of `names`, with the nearest of them or all of them.
pub(crate) fn not_among(text: &str, what: &str, names: &[&'static str]) -> String {
    match nearest(text, names.iter().copied()) {
        Some(name) => format!("`{text}` is not {what}; use {name} if that is meant"),
        None => format!("`{text}` is not {what}; use one of {}", names.join(", ")),
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
    for (key, value) in each(values, "node-label", label)? {
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

/// The file that a flag names, which has to be there.
fn readable(values: &Values, name: &'static str, environment: &Environment) -> Result<Option<PathBuf>, Error> {
    let Some(given) = values.given(name) else { return Ok(None) };
    let path = environment.absolute(&given.text);
    fs::read(&path).map_err(|error| given.unreadable(&path, error))?;
    Ok(Some(path))
}

/// The default file may be missing, as in k3s, also where somebody writes its name out.
fn registries(values: &Values, environment: &Environment) -> Result<PathBuf, Error> {
    let default = Flag::find(Role::Server, "private-registry").and_then(|flag| flag.default);
    let given = values.text("private-registry");
    let path = environment.absolute(&given.text);
    if default.map(Path::new) != Some(&path) {
        fs::read(&path).map_err(|error| given.unreadable(&path, error))?;
    }
    Ok(path)
}

/// An agent that has joined before holds a certificate, which stands in for the token.
fn has_joined(data_dir: &Path) -> bool {
    ["crt", "key"].iter().all(|end| data_dir.join(format!("agent/client-kubelet.{end}")).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    #[test]
    fn an_agent_needs_a_server_and_a_token() {
        let host = Host::new().variable("K3S_URL", "https://Server:6443/").variable("K3S_TOKEN", "K10::node:pw");
        let (config, _) = host.agent(&["--node-label=a=b"]).expect("a valid configuration");
        assert_eq!(config.server.to_string(), "https://server:6443");
        assert_eq!(config.token.as_ref().map(Secret::expose), Some("K10::node:pw"));
        assert_eq!((config.balancer_port, config.node.name.as_str()), (6444, "pi"));
    }

    #[test]
    fn an_agent_that_has_joined_needs_no_token() {
        let host = Host::new().file("agent/client-kubelet.crt", "").file("agent/client-kubelet.key", "");
        let args = ["--server=https://[2001:db8::1]:6443", "--data-dir=."];
        let (config, _) = host.agent(&args).expect("a valid configuration");
        assert!(config.token.is_none());
        assert_eq!(config.server.to_string(), "https://[2001:db8::1]:6443");
    }

    #[test]
    fn a_server_url_without_a_port_means_443() {
        assert_eq!("https://k3s.example.com".parse(), Ok(ServerUrl { host: "k3s.example.com".to_owned(), port: 443 }));
    }

    #[test]
    fn a_server_and_an_agent_may_share_a_file() {
        let host = Host::new().config("cluster-cidr: 10.50.0.0/16\ntoken: t\nserver: https://s:6443\n");
        let (_, warnings) = host.agent(&[]).expect("keys of servers are skipped");
        assert_eq!(warnings, []);
    }
}
