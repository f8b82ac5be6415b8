//! Every flag of `k3s server` and `k3s agent`, in one table: the command line, the configuration file's keys, the variables, the
//! help and the list of what is not served yet are all read from it.
//!
//! Names, letters, variables and defaults are those of k3s.

use std::ffi::OsString;

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue, ErrorKind},
    value_parser,
};

use crate::error::Error;

/// The two ways to run a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `k3s server`
    Server,
    /// `k3s agent`
    Agent,
}

/// The command line of a role, for help and completion scripts; [`parse_server`](crate::parse_server) and
/// [`parse_agent`](crate::parse_agent) read it.
pub fn command(role: Role) -> Command {
    let mut command = Command::new(role.verb())
        .about(role.about())
        .no_binary_name(true)
        .override_usage(format!("k3s {} [FLAGS]", role.verb()))
        .term_width(0)
        .arg(Arg::new(VERSION).long(VERSION).action(ArgAction::SetTrue).help("Print the version"));
    for section in SECTIONS {
        let flags = section.flags.iter().filter(|flag| flag.roles.include(role));
        command = command.next_help_heading(section.heading).args(flags.map(Flag::arg));
    }
    command
}

impl Role {
    /// The word after `k3s`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Server => Self::Agent,
            Self::Agent => Self::Server,
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Server => "Run a server: control plane, datastore and, unless told otherwise, a node",
            Self::Agent => "Run a node that joins a server",
        }
    }
}

/// One flag, as all sources know it.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) variable: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) secret: bool,
    pub(crate) standing: Standing,
    roles: Roles,
    /// What a value is, in the help.
    placeholder: &'static str,
    help: &'static str,
    hidden: bool,
}

/// How many values a flag holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// True or false; alone it means true.
    Switch,
    /// The last value given counts.
    Text,
    /// All values given count.
    List,
}

/// What becomes of a flag that is given.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Standing {
    /// It is heeded.
    Served,
    /// It changes nothing, for this reason.
    Accepted(&'static str),
    /// Its values go to the flag of this name.
    Renamed(&'static str),
    /// It is heeded; the text says what to use today.
    Deprecated(&'static str),
    /// It is refused, unless it asks for its own default.
    Unserved(Refusal),
    /// Only these values are refused.
    UnservedValues(&'static [&'static str], Refusal),
}

/// Why something that k3s has is refused here: `<what> is not served by this version; <instead>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What the flag stands for, as the start of a sentence.
    pub what: &'static str,
    /// What to do, as its end.
    pub instead: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roles {
    Server,
    Agent,
    Both,
}

pub(crate) struct Section {
    pub(crate) heading: &'static str,
    pub(crate) flags: &'static [Flag],
}

impl Flag {
    /// The flag of `role` called `name`; a single letter is a short form.
    pub(crate) fn find(role: Role, name: &str) -> Option<&'static Self> {
        let mut letters = name.chars();
        let letter = letters.next().filter(|_| letters.next().is_none());
        Self::of(role).find(|flag| flag.name == name || (letter.is_some() && flag.short == letter))
    }

    /// The flags of `role`, in the table's order.
    pub(crate) fn of(role: Role) -> impl Iterator<Item = &'static Self> {
        SECTIONS.iter().flat_map(|section| section.flags).filter(move |flag| flag.roles.include(role))
    }

    /// The name of `role`'s flags nearest to what somebody wrote, if it is near enough to be meant.
    pub(crate) fn nearest(role: Role, written: &str) -> Option<&'static str> {
        nearest(written, Self::of(role).map(|flag| flag.name))
    }

    /// Why `value` is refused, if it is.
    pub(crate) fn refusal(&self, value: &str) -> Option<Refusal> {
        let default = self.default.or((self.kind == Kind::Switch).then_some("false"));
        match self.standing {
            Standing::Unserved(refusal) if default != Some(value) => Some(refusal),
            Standing::UnservedValues(values, refusal) if values.contains(&value) => Some(refusal),
            _ => None,
        }
    }

    fn arg(&self) -> Arg {
        let mut help = self.help.to_owned();
        for (what, text) in [("env", self.variable), ("default", self.default)] {
            if let Some(text) = text {
                help += &format!(" [{what}: {text}]");
            }
        }
        if let Standing::Accepted(why) = self.standing {
            help += &format!(" (changes nothing: {why})");
        }
        let hide = self.hidden || matches!(self.standing, Standing::Unserved(_));
        let arg = Arg::new(self.name).long(self.name).help(help).hide(hide).action(ArgAction::Append);
        let arg = arg.value_parser(value_parser!(OsString)).value_name(self.placeholder);
        let arg = match self.kind {
            Kind::Switch => {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true)
            }
            Kind::Text => arg.num_args(1),
            // The values of `--kubelet-arg` and its like may start with dashes.
            Kind::List => arg.num_args(1).allow_hyphen_values(self.name.ends_with("-arg")),
        };
        match self.short {
            Some(letter) => arg.short(letter),
            None => arg,
        }
    }

    const fn new(kind: Kind, name: &'static str, placeholder: &'static str, help: &'static str) -> Self {
        Self {
            name,
            short: None,
            variable: None,
            kind,
            default: None,
            secret: false,
            standing: Standing::Served,
            roles: Roles::Both,
            placeholder,
            help,
            hidden: false,
        }
    }

    const fn short(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    const fn env(self, variable: &'static str) -> Self {
        Self { variable: Some(variable), ..self }
    }

    const fn default(self, text: &'static str) -> Self {
        Self { default: Some(text), ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn server(self) -> Self {
        Self { roles: Roles::Server, ..self }
    }

    const fn agent(self) -> Self {
        Self { roles: Roles::Agent, ..self }
    }

    const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    const fn accepted(self, why: &'static str) -> Self {
        Self { standing: Standing::Accepted(why), ..self }
    }

    const fn renamed(self, name: &'static str) -> Self {
        Self { standing: Standing::Renamed(name), hidden: true, ..self }
    }

    const fn deprecated(self, instead: &'static str) -> Self {
        Self { standing: Standing::Deprecated(instead), hidden: true, ..self }
    }

    const fn unserved(self, refusal: Refusal) -> Self {
        Self { standing: Standing::Unserved(refusal), ..self }
    }

    const fn unserved_values(self, values: &'static [&'static str], refusal: Refusal) -> Self {
        Self { standing: Standing::UnservedValues(values, refusal), ..self }
    }
}

impl Roles {
    fn include(self, role: Role) -> bool {
        match self {
            Self::Both => true,
            Self::Server => role == Role::Server,
            Self::Agent => role == Role::Agent,
        }
    }
}

/// What the command line holds: each flag with its values, in the table's order.
pub(crate) fn read_command_line(role: Role, args: &[OsString]) -> Result<Vec<(&'static Flag, Vec<OsString>)>, Error> {
    let args = with_two_dashes(role, args);
    let mut matches = command(role).try_get_matches_from(&args).map_err(|error| explain(role, &args, &error))?;
    if matches.get_flag(VERSION) {
        return Err(Error::Version);
    }
    Ok(Flag::of(role).filter_map(|flag| Some((flag, matches.remove_many(flag.name)?.collect()))).collect())
}

/// `-data-dir` as `--data-dir`: Go programs take both, and clap would read it as `-d ata-dir`.
fn with_two_dashes(role: Role, args: &[OsString]) -> Vec<OsString> {
    let mut value_follows = false;
    let rewrite = |arg: &OsString| {
        let Some(text) = arg.to_str().filter(|text| text.starts_with('-') && !std::mem::take(&mut value_follows))
        else {
            value_follows = false;
            return arg.clone();
        };
        let bare = text.trim_start_matches('-');
        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value)));
        let Some(flag) = Flag::find(role, name) else { return arg.clone() };
        value_follows = flag.kind != Kind::Switch && value.is_none();
        if name.len() > 1 && !text.starts_with("--") { format!("-{text}").into() } else { arg.clone() }
    };
    args.iter().map(rewrite).collect()
}

/// The name nearest to what somebody wrote, if it is near enough to be meant.
pub(crate) fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    names
        .map(|name| (strsim::damerau_levenshtein(&written, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}

/// One sentence for what clap found.
fn explain(role: Role, args: &[OsString], error: &clap::Error) -> Error {
    if error.kind() == ErrorKind::DisplayHelp {
        return Error::Help(error.render().to_string());
    }
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    // Whatever follows the name may be a secret.
    let name = argument.split(['=', ' ']).next().unwrap_or_default();
    if error.kind() != ErrorKind::UnknownArgument {
        return Error::MissingValue { flag: name.to_owned() };
    }
    if name.starts_with('-') {
        let bare = name.trim_start_matches('-');
        return match Flag::find(role.other(), bare) {
            Some(flag) => Error::FlagOfOtherRole { flag: flag.name, role },
            None => Error::UnknownFlag { flag: name.to_owned(), role, nearest: Flag::nearest(role, bare) },
        };
    }
    let secrets = args.iter().any(|arg| {
        let text = arg.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default().trim_start_matches('-');
        Flag::find(role, name).is_some_and(|flag| flag.secret)
    });
    Error::StrayArgument { role, argument: (!secrets).then(|| argument.to_owned()) }
}

const VERSION: &str = "version";

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag::new(Kind::Switch, name, "BOOL", help)
}

const fn text(name: &'static str, placeholder: &'static str, help: &'static str) -> Flag {
    Flag::new(Kind::Text, name, placeholder, help)
}

const fn list(name: &'static str, placeholder: &'static str, help: &'static str) -> Flag {
    Flag::new(Kind::List, name, placeholder, help)
}

const fn refusal(what: &'static str, instead: &'static str) -> Refusal {
    Refusal { what, instead }
}

const LEAVE_OUT: &str = "leave it out";
const ETCD: Refusal = refusal("embedded etcd", "leave it out to keep the cluster's state in SQLite");
pub(crate) const EXTERNAL_DATASTORE: Refusal =
    refusal("an external datastore", "leave it out to keep the cluster's state in SQLite");
const PORTS: Refusal =
    refusal("a second port for the supervisor or kube-apiserver", "use --https-listen-port for both");
const FLANNEL: Refusal = refusal("this setting of flannel", "leave it out to use vxlan over IPv4");
const RUNTIME: Refusal =
    refusal("a container runtime of one's own", "leave it out to run the containerd that comes along");
const VPN: Refusal = refusal("an overlay over a VPN", "leave it out to use vxlan");
const ROOTLESS: Refusal = refusal("running without root", "leave it out and run as root");
const CREDENTIALS: Refusal = refusal("a credential provider for images", "put credentials into registries.yaml");
const CLOUD: Refusal = refusal(
    "an argument for the cloud controller, which is part of k3s itself,",
    "leave it out, or use --disable-cloud-controller",
);

pub(crate) const SECTIONS: &[Section] = &[
    Section {
        heading: "Configuration and logs",
        flags: &[
            text("config", "FILE", "File with flags as YAML keys; files in FILE.d/ are added to it")
                .short('c')
                .env("K3S_CONFIG_FILE")
                .default("/etc/rancher/k3s/config.yaml"),
            switch("debug", "Log what is done in detail").env("K3S_DEBUG"),
            text("v", "LEVEL", "Verbosity of the Kubernetes components").short('v').default("0"),
            text("vmodule", "PATTERNS", "Verbosity by source file").unserved(refusal(
                "verbosity by source file",
                "pass it to the component itself, as in --kubelet-arg=vmodule=PATTERN=N",
            )),
            text("log", "FILE", "Log to a file")
                .short('l')
                .unserved(refusal("logging to a file", "leave it out and read the journal or redirect standard error")),
            switch("alsologtostderr", "Log to standard error too")
                .accepted("logs always go to the journal or to standard error"),
        ],
    },
    Section {
        heading: "Listener",
        flags: &[
            text("bind-address", "IP", "Address to listen on").default("0.0.0.0"),
            text("https-listen-port", "PORT", "Port to listen on; kube-apiserver takes the next one on loopback")
                .default("6443")
                .server(),
            text("supervisor-port", "PORT", "Port of the supervisor").default("0").server().unserved(PORTS),
            text("apiserver-port", "PORT", "Port of kube-apiserver").default("0").server().unserved(PORTS),
            text("apiserver-bind-address", "IP", "Address of kube-apiserver").server().unserved(refusal(
                "a kube-apiserver that listens elsewhere than on loopback",
                "use --bind-address for the address that clients reach",
            )),
            text(
                "advertise-address",
                "IP",
                "Address that kube-apiserver publishes for itself; the node's if not given",
            )
            .server(),
            text("advertise-port", "PORT", "Port that it publishes; the one listened on if not given").server(),
            list("tls-san", "NAME", "Further name or address on the server's certificate").server(),
            switch("tls-san-security", "Keep names that nobody configured off the server's certificate")
                .default("true")
                .server()
                .unserved(refusal("a certificate for any name a client asks for", "list the names with --tls-san")),
        ],
    },
    Section {
        heading: "Data",
        flags: &[
            text("data-dir", "DIR", "Where all state is kept")
                .short('d')
                .env("K3S_DATA_DIR")
                .default("/var/lib/rancher/k3s"),
            text("default-local-storage-path", "DIR", "Where local volumes are kept; <data-dir>/storage if not given")
                .server()
                .accepted("there is no provisioner of local volumes yet"),
        ],
    },
    Section {
        heading: "Networking",
        flags: &[
            list("cluster-cidr", "CIDR", "Address range of pods").default("10.42.0.0/16").server(),
            list("service-cidr", "CIDR", "Address range of services").default("10.43.0.0/16").server(),
            text("service-node-port-range", "FIRST-LAST", "Ports for NodePort services")
                .default("30000-32767")
                .server(),
            list("cluster-dns", "IP", "Address of the cluster's DNS; the tenth of the service range if not given")
                .server(),
            text("cluster-domain", "DOMAIN", "The cluster's DNS domain").default("cluster.local").server(),
            text("flannel-backend", "BACKEND", "How pods reach other nodes: vxlan, or none for a CNI plugin of yours")
                .default("vxlan")
                .server()
                .unserved_values(
                    &["host-gw", "wireguard-native", "wireguard", "tailscale", "ipsec"],
                    refusal("this backend", "use vxlan, or none with a CNI plugin of yours"),
                ),
            switch("flannel-ipv6-masq", "Masquerade IPv6").server().unserved(FLANNEL),
            switch("flannel-external-ip", "Run the overlay over external addresses").server().unserved(FLANNEL),
            text(
                "egress-selector-mode",
                "MODE",
                "How the control plane reaches nodes: agent or disabled, which are the same here until agents join",
            )
            .default("agent")
            .server()
            .unserved_values(&["cluster", "pod"], refusal("this mode", "use agent or disabled")),
            text("servicelb-namespace", "NAME", "Namespace of the load balancer's pods")
                .default("kube-system")
                .server()
                .accepted("there is no load balancer for Services yet"),
            text("servicelb-priority-class", "NAME", "Priority class of the load balancer's pods")
                .default("system-node-critical")
                .server()
                .accepted("there is no load balancer for Services yet"),
        ],
    },
    Section {
        heading: "Client",
        flags: &[
            text("write-kubeconfig", "FILE", "Where the administrator's kubeconfig goes")
                .short('o')
                .env("K3S_KUBECONFIG_OUTPUT")
                .default("/etc/rancher/k3s/k3s.yaml")
                .server(),
            text("write-kubeconfig-mode", "MODE", "Its permission bits, in octal")
                .env("K3S_KUBECONFIG_MODE")
                .default("0600")
                .server(),
            text("write-kubeconfig-group", "GROUP", "Its group").env("K3S_KUBECONFIG_GROUP").server(),
        ],
    },
    Section {
        heading: "Cluster",
        flags: &[
            text("token", "TOKEN", "Secret that nodes join with").short('t').env("K3S_TOKEN").secret(),
            text("token-file", "FILE", "File that holds it").env("K3S_TOKEN_FILE"),
            text("agent-token", "TOKEN", "Secret that agents, but not servers, join with")
                .env("K3S_AGENT_TOKEN")
                .secret()
                .server(),
            text("agent-token-file", "FILE", "File that holds it").env("K3S_AGENT_TOKEN_FILE").server(),
            text("cluster-secret", "TOKEN", "Old name of --token").env("K3S_CLUSTER_SECRET").secret().renamed("token"),
            switch("cluster-init", "Start a cluster on embedded etcd").env("K3S_CLUSTER_INIT").server().unserved(ETCD),
            switch("cluster-reset", "Forget all other servers").env("K3S_CLUSTER_RESET").server().unserved(ETCD),
            text("cluster-reset-restore-path", "FILE", "Snapshot to restore").server().unserved(ETCD),
        ],
    },
    Section {
        heading: "Joining",
        flags: &[
            text("server", "URL", "Server to join")
                .short('s')
                .env("K3S_URL")
                .server()
                .unserved(refusal("a cluster of several servers", "leave it out to run the one server")),
            text("server", "URL", "Server to join, as https://HOST:6443").short('s').env("K3S_URL").agent(),
            text("lb-server-port", "PORT", "Local port of the load balancer in front of the servers")
                .env("K3S_LB_SERVER_PORT")
                .default("6444")
                .agent(),
            text("lb-server-port", "PORT", "Local port of the load balancer in front of the servers")
                .env("K3S_LB_SERVER_PORT")
                .default("6444")
                .server()
                .accepted("a server alone needs no load balancer"),
            switch("disable-apiserver-lb", "Talk to the server without the load balancer")
                .agent()
                .unserved(refusal("an agent without its load balancer", LEAVE_OUT)),
        ],
    },
    Section {
        heading: "Datastore",
        flags: &[
            text("datastore-endpoint", "URL", "Where the cluster's state is kept: sqlite:// or sqlite:///FILE")
                .env("K3S_DATASTORE_ENDPOINT")
                .secret()
                .server(),
            text("datastore-cafile", "FILE", "CA of the datastore")
                .env("K3S_DATASTORE_CAFILE")
                .server()
                .unserved(EXTERNAL_DATASTORE),
            text("datastore-certfile", "FILE", "Certificate for the datastore")
                .env("K3S_DATASTORE_CERTFILE")
                .server()
                .unserved(EXTERNAL_DATASTORE),
            text("datastore-keyfile", "FILE", "Its key")
                .env("K3S_DATASTORE_KEYFILE")
                .server()
                .unserved(EXTERNAL_DATASTORE),
            switch("kine-tls", "TLS on the datastore's socket")
                .server()
                .unserved(refusal("TLS on the datastore's own socket, which only root can open,", LEAVE_OUT)),
            switch("etcd-disable-snapshots", "Take no snapshots of etcd").server().accepted("there is no etcd"),
            switch("etcd-expose-metrics", "Metrics of etcd").server().unserved(ETCD),
            text("etcd-snapshot-name", "NAME", "Name of snapshots").default("etcd-snapshot").server().unserved(ETCD),
            text("etcd-snapshot-schedule-cron", "CRON", "When to take snapshots")
                .default("0 */12 * * *")
                .server()
                .unserved(ETCD),
            text("etcd-snapshot-reconcile-interval", "TIME", "How often to list snapshots")
                .default("10m")
                .server()
                .unserved(ETCD),
            text("etcd-snapshot-retention", "COUNT", "Snapshots to keep").default("5").server().unserved(ETCD),
            text("etcd-snapshot-dir", "DIR", "Where snapshots go").server().unserved(ETCD),
            switch("etcd-snapshot-compress", "Compress snapshots").server().unserved(ETCD),
            // AWS_* variables only complete --etcd-s3: their presence alone asks for nothing.
            switch("etcd-s3", "Snapshots to S3").server().unserved(ETCD),
            text("etcd-s3-endpoint", "HOST", "S3 endpoint").default("s3.amazonaws.com").server().unserved(ETCD),
            text("etcd-s3-endpoint-ca", "FILE", "Its CA").server().unserved(ETCD),
            switch("etcd-s3-skip-ssl-verify", "Do not check its certificate").server().unserved(ETCD),
            text("etcd-s3-access-key", "KEY", "S3 access key").secret().server().unserved(ETCD),
            text("etcd-s3-secret-key", "KEY", "S3 secret key").secret().server().unserved(ETCD),
            text("etcd-s3-session-token", "TOKEN", "S3 session token").secret().server().unserved(ETCD),
            text("etcd-s3-bucket", "NAME", "S3 bucket").server().unserved(ETCD),
            text("etcd-s3-bucket-lookup-type", "TYPE", "How buckets are addressed")
                .default("auto")
                .server()
                .unserved(ETCD),
            text("etcd-s3-region", "NAME", "S3 region").default("us-east-1").server().unserved(ETCD),
            text("etcd-s3-folder", "NAME", "S3 folder").server().unserved(ETCD),
            text("etcd-s3-proxy", "URL", "Proxy to S3").secret().server().unserved(ETCD),
            text("etcd-s3-config-secret", "NAME", "Secret that holds these settings").server().unserved(ETCD),
            switch("etcd-s3-insecure", "S3 without TLS").server().unserved(ETCD),
            text("etcd-s3-timeout", "TIME", "S3 timeout").default("5m0s").server().unserved(ETCD),
            text("etcd-s3-retention", "COUNT", "Snapshots to keep in S3").default("5").server().unserved(ETCD),
        ],
    },
    Section {
        heading: "Components",
        flags: &[
            list(
                "disable",
                "NAME",
                "Packaged add-on to leave out: coredns, servicelb, traefik, local-storage, metrics-server, runtimes",
            )
            .server(),
            switch("disable-scheduler", "Run no kube-scheduler").server(),
            switch("disable-cloud-controller", "Leave nodes to a cloud controller of yours").server(),
            switch("disable-kube-proxy", "Run no kube-proxy").server(),
            switch("disable-network-policy", "Enforce no network policies")
                .server()
                .accepted("network policies are not enforced yet"),
            switch("disable-helm-controller", "Install no Helm charts")
                .server()
                .accepted("Helm charts are not installed yet"),
            switch("disable-controller-manager", "Run no kube-controller-manager").server().hidden(),
            switch("disable-agent", "Run no node beside the control plane").server(),
            switch("disable-apiserver", "Run no kube-apiserver")
                .server()
                .unserved(refusal("a server without kube-apiserver", "leave it out")),
            switch("disable-etcd", "Run no etcd")
                .server()
                .unserved(refusal("a server that has its etcd elsewhere", LEAVE_OUT)),
            text("helm-job-image", "IMAGE", "Image of Helm jobs")
                .server()
                .unserved(refusal("a Helm job, and an image for it,", LEAVE_OUT)),
            switch("embedded-registry", "Share images between nodes")
                .server()
                .unserved(refusal("the embedded registry", "leave it out and configure mirrors in registries.yaml")),
            switch("supervisor-metrics", "Serve metrics")
                .server()
                .unserved(refusal("a metrics page of the supervisor", LEAVE_OUT)),
            switch("secrets-encryption", "Encrypt Secrets at rest")
                .server()
                .unserved(refusal("encryption of Secrets", "use --kube-apiserver-arg=encryption-provider-config=FILE")),
            text("secrets-encryption-provider", "NAME", "How to encrypt them")
                .default("aescbc")
                .server()
                .unserved(refusal("encryption of Secrets", "use --kube-apiserver-arg=encryption-provider-config=FILE")),
            list("kube-apiserver-arg", "NAME=VALUE", "Argument for kube-apiserver").server(),
            list("kube-controller-manager-arg", "NAME=VALUE", "Argument for kube-controller-manager").server(),
            list("kube-controller-arg", "NAME=VALUE", "Old name of --kube-controller-manager-arg")
                .server()
                .renamed("kube-controller-manager-arg"),
            list("kube-scheduler-arg", "NAME=VALUE", "Argument for kube-scheduler").server(),
            list("kube-cloud-controller-manager-arg", "NAME=VALUE", "Argument for the cloud controller")
                .server()
                .unserved(CLOUD),
            list("kube-cloud-controller-arg", "NAME=VALUE", "Argument for the cloud controller")
                .server()
                .unserved(CLOUD),
            list("etcd-arg", "NAME=VALUE", "Argument for etcd").server().unserved(ETCD),
        ],
    },
    Section {
        heading: "Node",
        flags: &[
            text("node-name", "NAME", "Name of the node; the host's name if not given").env("K3S_NODE_NAME"),
            switch("with-node-id", "Append a stable id to the node's name"),
            list("node-label", "KEY=VALUE", "Label that the node registers with"),
            list("node-taint", "KEY=VALUE:EFFECT", "Taint that the node registers with"),
            list("node-ip", "IP", "Address of the node; found by the default route if not given").short('i'),
            list("node-external-ip", "IP", "Address that the outside reaches the node by"),
            list("node-internal-dns", "NAME", "DNS name of the node inside"),
            list("node-external-dns", "NAME", "DNS name of the node outside"),
            text("resolv-conf", "FILE", "resolv.conf that pods inherit").env("K3S_RESOLV_CONF"),
            text("flannel-iface", "NAME", "Interface that the overlay runs over"),
            text("flannel-cni-conf", "FILE", "CNI configuration to install instead of the built-in one"),
            text("flannel-conf", "FILE", "Configuration of flannel").unserved(FLANNEL),
            switch("protect-kernel-defaults", "Fail rather than change kernel settings for kubelet"),
            switch("selinux", "SELinux for containers")
                .env("K3S_SELINUX")
                .unserved(refusal("SELinux for containers", "leave it out")),
            list("kubelet-arg", "NAME=VALUE", "Argument for kubelet"),
            list("kube-proxy-arg", "NAME=VALUE", "Argument for kube-proxy"),
            text("image-credential-provider-bin-dir", "DIR", "Programs that give credentials for images")
                .default("/var/lib/rancher/credentialprovider/bin")
                .unserved(CREDENTIALS),
            text("image-credential-provider-config", "FILE", "Their configuration")
                .default("/var/lib/rancher/credentialprovider/config.yaml")
                .unserved(CREDENTIALS),
            text("vpn-auth", "TEXT", "Credentials of a VPN").env("K3S_VPN_AUTH").secret().unserved(VPN),
            text("vpn-auth-file", "FILE", "File that holds them").env("K3S_VPN_AUTH_FILE").unserved(VPN),
            switch("no-flannel", "Old form of --flannel-backend=none").server().deprecated("--flannel-backend=none"),
            switch("no-flannel", "Run no overlay on this node")
                .agent()
                .unserved(refusal("switching the overlay off on one node", "use --flannel-backend=none on the server")),
            switch("disable-selinux", "No SELinux for containers")
                .deprecated("nothing, as SELinux for containers is off unless --selinux is given"),
        ],
    },
    Section {
        heading: "Containers",
        flags: &[
            text("snapshotter", "NAME", "containerd's snapshotter: overlayfs, native, btrfs or zfs")
                .default("overlayfs")
                .unserved_values(
                    &["fuse-overlayfs", "stargz"],
                    refusal("this snapshotter", "use overlayfs, native, btrfs or zfs"),
                ),
            text("private-registry", "FILE", "Registries' mirrors and credentials")
                .default("/etc/rancher/k3s/registries.yaml"),
            text("system-default-registry", "HOST", "Registry to take all packaged images from")
                .env("K3S_SYSTEM_DEFAULT_REGISTRY")
                .server(),
            text("pause-image", "IMAGE", "Image of pods' sandboxes; the built-in one if not given"),
            text("default-runtime", "NAME", "Runtime of pods that name none"),
            switch("nonroot-devices", "Devices of pods that run as another user belong to that user"),
            switch("disable-default-registry-endpoint", "Pull from mirrors only").unserved(refusal(
                "pulling from mirrors only",
                "name the mirrors in registries.yaml, which are tried first",
            )),
            list("airgap-extra-registry", "HOST", "Registry to name imported images for too")
                .unserved(refusal("a second name for imported images", "name them in the archive")),
            switch("docker", "Run containers with Docker").unserved(RUNTIME),
            text("container-runtime-endpoint", "SOCKET", "Another container runtime").unserved(RUNTIME),
            text("image-service-endpoint", "SOCKET", "Another image service").unserved(RUNTIME),
            switch("rootless", "Run without root").unserved(ROOTLESS),
            switch("prefer-bundled-bin", "Prefer the programs that come along")
                .accepted("the programs that come along are always preferred"),
            switch("enable-pprof", "Serve profiles")
                .unserved(refusal("profiling over the supervisor's port", LEAVE_OUT)),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs};

    use super::*;

    #[test]
    fn the_table_is_sound() {
        for role in [Role::Server, Role::Agent] {
            command(role).debug_assert();
            let mut names = HashSet::new();
            for flag in Flag::of(role) {
                assert!(names.insert(flag.name), "--{} is there twice", flag.name);
                assert!(flag.variable.is_none_or(|name| name.starts_with("K3S_")), "--{}", flag.name);
                if let Standing::Renamed(name) = flag.standing {
                    let new = Flag::find(role, name).expect("the new name exists");
                    assert_eq!((new.kind, new.secret), (flag.kind, flag.secret), "--{}", flag.name);
                }
            }
        }
    }

    #[test]
    fn help_has_a_line_for_each_flag_that_is_served_and_none_for_others() {
        let help = command(Role::Server).render_help().to_string();
        assert!(
            help.lines().any(|line| line.contains("-t, --token <TOKEN>") && line.contains("[env: K3S_TOKEN]")),
            "{help}"
        );
        assert!(!help.contains("--cluster-init") && !help.contains("--cluster-secret"), "{help}");
        assert!(help.lines().all(|line| !line.starts_with("          ")), "a line is broken in two: {help}");
    }

    #[test]
    fn one_dash_does_for_long_names_too() {
        let args = ["-data-dir", "-token", "-token=a", "-debug", "-v2", "-kubelet-arg", "-v=4"].map(OsString::from);
        let expected =
            ["--data-dir", "-token", "--token=a", "--debug", "-v2", "--kubelet-arg", "-v=4"].map(OsString::from);
        assert_eq!(with_two_dashes(Role::Server, &args), expected);
    }

    /// The tables of docs/configuration.md, made of the table above.
    #[test]
    fn the_documentation_lists_what_is_not_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let page = fs::read_to_string(path).expect("the page is in the tree");
        for (title, table) in [("refused", refused()), ("accepted", accepted())] {
            assert!(page.contains(&table), "{path} should have this table of {title} flags:\n{table}");
        }
    }

    fn refused() -> String {
        let mut rows = Vec::<(Vec<String>, Refusal)>::new();
        for flag in all() {
            let (names, refusal) = match flag.standing {
                Standing::Unserved(refusal) => match flag.default {
                    Some("true") => (vec![format!("`--{}=false`", flag.name)], refusal),
                    _ => (vec![marked(flag)], refusal),
                },
                Standing::UnservedValues(values, refusal) => {
                    (values.iter().map(|value| format!("`--{}={value}`", flag.name)).collect(), refusal)
                }
                _ => continue,
            };
            match rows.iter_mut().find(|row| row.1 == refusal) {
                Some(row) => row.0.extend(names),
                None => rows.push((names, refusal)),
            }
        }
        let rows = rows.iter().map(|(names, refusal)| {
            format!("| {} | {} | {} |\n", names.join(", "), refusal.what.trim_end_matches(','), refusal.instead)
        });
        format!("| Flag | What it is | Instead |\n|---|---|---|\n{}", rows.collect::<String>())
    }

    fn accepted() -> String {
        let rows = all().filter_map(|flag| match flag.standing {
            Standing::Accepted(why) => Some(format!("| {} | {why} |\n", marked(flag))),
            _ => None,
        });
        format!("| Flag | Why it changes nothing |\n|---|---|\n{}", rows.collect::<String>())
    }

    /// A flag's name, and the role where it concerns one while the other has such a flag too.
    fn marked(flag: &Flag) -> String {
        let both = [Role::Server, Role::Agent].iter().all(|role| Flag::find(*role, flag.name).is_some());
        match flag.roles {
            Roles::Server if both => format!("`--{}` of a server", flag.name),
            Roles::Agent if both => format!("`--{}` of an agent", flag.name),
            _ => format!("`--{}`", flag.name),
        }
    }

    fn all() -> impl Iterator<Item = &'static Flag> {
        SECTIONS.iter().flat_map(|section| section.flags)
    }
}
