//! `k3s check-config [server|agent] [FLAGS]`: would a start with these flags and these files work on this machine?

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ipnet::IpNet;
use k3s_components::{Need, Paths, UserConfigs, UserTemplate};
use k3s_config::{
    Error as ConfigError, Warning,
    agent::NodeConfig,
    resources::{Profile, ProfileChoice},
};
use k3s_daemon::SettledProfile;
use k3s_network::ProxyMode;

use super::{
    Failure,
    environment::{environment, refused},
    failure::{CONFIGURATION, UNAVAILABLE},
    globals::Globals,
    output::{line, show},
    read_ahead, runtime, unused_files,
    upstream::libexec,
};

/// What a node cannot do without, by the name the kernel gives it in `/proc/cgroups` or `cgroup.controllers`.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// What a configuration asks of the machine.
struct Checked {
    needs: Vec<Need>,
    node: Option<NodeConfig>,
    data_dir: PathBuf,
    cluster_cidrs: Vec<IpNet>,
    resource_profile: ProfileChoice,
    warnings: Vec<Warning>,
    unused_files: Vec<String>,
}

pub(super) fn run(args: Vec<OsString>, globals: Globals) -> Result<ExitCode, Failure> {
    let asked = match Checked::parse(args, globals)? {
        Ok(asked) => asked,
        Err(ConfigError::Help(text)) => {
            show(text)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(refused(&error)),
    };
    check_warnings(&asked.warnings)?;
    line("ok       the configuration")?;
    for sentence in &asked.unused_files {
        line(format_args!("note     {sentence}"))?;
    }
    let found = libexec()?.require(&asked.needs).map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;
    line("ok       the components")?;
    let SettledProfile { profile, why } = SettledProfile::of(asked.resource_profile);
    line(format_args!("ok       resource profile {} ({why})", profile.name()))?;
    if profile == Profile::Small
        && let Some(sentence) = read_ahead::too_far(&found.path("kubelet"))
    {
        line(format_args!("note     {sentence}"))?;
    }

    let mut report = Report::default();
    if let Some(node) = &asked.node {
        users_files(node, &asked.data_dir)?;
        machine(&mut report)?;
        runtime::run(network(&mut report, node, &asked.cluster_cidrs))?;
    }
    report.end()
}

impl Checked {
    fn parse(mut args: Vec<OsString>, globals: Globals) -> Result<Result<Self, ConfigError>, Failure> {
        let is_agent = args.first().is_some_and(|word| word == "agent");
        if is_agent || args.first().is_some_and(|word| word == "server") {
            args.remove(0);
        }
        let (args, environment) = (globals.before(args), environment()?);
        if is_agent {
            return Ok(k3s_config::parse_agent(args, &environment).map(|(config, warnings)| Self {
                needs: vec![Need::Node],
                unused_files: unused_files::of_agent(&config),
                node: Some(config.node),
                data_dir: config.data_dir,
                // Its servers tell at the join.
                cluster_cidrs: Vec::new(),
                resource_profile: config.resource_profile,
                warnings,
            }));
        }
        Ok(k3s_config::parse_server(args, &environment).map(|(config, warnings)| Self {
            needs: Need::of_server(&config),
            unused_files: unused_files::of_server(&config),
            node: config.node,
            data_dir: config.data_dir,
            cluster_cidrs: config.network.cluster_cidrs,
            resource_profile: config.resource_profile,
            warnings,
        }))
    }
}

fn check_warnings(warnings: &[Warning]) -> Result<(), Failure> {
    for warning in warnings.iter().filter(|warning| !matches!(warning, Warning::UnknownKey(_))) {
        line(format_args!("note     {warning}"))?;
    }
    k3s_config::check(warnings).map_err(|unknown| refused(&unknown.into()))
}

/// Files of the user's that components read.
fn users_files(node: &NodeConfig, data_dir: &Path) -> Result<(), Failure> {
    let paths = Paths::new(data_dir, Paths::RUN);
    let unusable = |error| Failure::from_error(CONFIGURATION, &error);
    UserConfigs::read(node, &paths.agent_etc("kubelet.conf.d")).map_err(unusable)?;
    k3s_agent::check_registries(node).map_err(|error| Failure::from_error(CONFIGURATION, &error))?;
    match UserTemplate::find(&paths.agent_etc("containerd")).map_err(unusable)? {
        Some((path, template)) => template
            .check(node, &paths)
            .map_err(|error| Failure::new(CONFIGURATION, format!("{} {error}", path.display()))),
        None => Ok(()),
    }
}

/// The kernel, and who asks.
fn machine(report: &mut Report) -> Result<(), Failure> {
    report.check(
        "running as root",
        nix::unistd::Uid::effective().is_root(),
        "run k3s as root: pods need namespaces, mounts and cgroups",
    )?;
    let controllers = controllers();
    for name in CONTROLLERS {
        report.check(
            &format!("cgroup controller {name}"),
            controllers.contains(name),
            &format!("enable it on the kernel command line (for memory: cgroup_enable=memory cgroup_memory=1); kubelet does not start without {name}"),
        )?;
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    report.check(
        "overlay file system",
        filesystems.split_whitespace().any(|name| name == "overlay"),
        "load the overlay module, or use --snapshotter=native",
    )
}

/// What pods send, and where to.
async fn network(report: &mut Report, node: &NodeConfig, cluster_cidrs: &[IpNet]) -> Result<(), Failure> {
    let mode = match k3s_network::nftables_usable().await {
        Ok(()) => {
            line(
                "ok       nftables; a NodePort does not answer on localhost in this mode: use the node's address, or --kube-proxy-arg=proxy-mode=iptables",
            )?;
            ProxyMode::Nftables
        }
        Err(reason) => {
            line(format_args!("note     nftables cannot be used ({reason}): Services and pods' way out use iptables"))?;
            ProxyMode::Iptables
        }
    };
    let obstacles = k3s_network::obstacles(mode, cluster_cidrs).await;
    for k3s_network::Warning { key, sentence } in &obstacles {
        match *key {
            // The node is known by another address than that of the route.
            "default-route" if !node.ips.is_empty() => line(format_args!("note     {sentence}"))?,
            "default-route" => report.fail(&format!("{sentence} Without it, give --node-ip too."))?,
            _ => report.fail(sentence)?,
        }
    }
    if obstacles.is_empty() {
        line("ok       pods' way: nothing of the host stands in it")?;
    }
    match k3s_agent::resolv_conf_for_pods(node.resolv_conf.as_deref()) {
        Some(path) => line(format_args!("ok       pods' name servers, of {}", path.display())),
        None => line(format_args!("note     {}", k3s_agent::NO_RESOLV_CONF)),
    }
}

fn controllers() -> BTreeSet<String> {
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let legacy = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    // subsys_name, hierarchy, num_cgroups, enabled; hierarchy 0 means that no v1 hierarchy has it.
    let mounted = legacy.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, hierarchy) = (fields.next()?, fields.next()?);
        (hierarchy != "0").then(|| name.to_owned())
    });
    unified.split_whitespace().map(str::to_owned).chain(mounted).collect()
}

#[derive(Default)]
struct Report {
    failed: usize,
}

impl Report {
    fn check(&mut self, what: &str, good: bool, remedy: &str) -> Result<(), Failure> {
        if good { line(format_args!("ok       {what}")) } else { self.fail(&format!("{what}: {remedy}")) }
    }

    fn fail(&mut self, sentence: &str) -> Result<(), Failure> {
        self.failed += 1;
        line(format_args!("missing  {sentence}"))
    }

    fn end(self) -> Result<ExitCode, Failure> {
        match self.failed {
            0 => Ok(ExitCode::SUCCESS),
            1 => Err(Failure::new(UNAVAILABLE, "this machine lacks one thing, named above")),
            failed => Err(Failure::new(UNAVAILABLE, format!("this machine lacks {failed} things, named above"))),
        }
    }
}
