//! `k3s check-config [server|agent] [FLAGS]`: would a start with these flags and these files work on this machine?

use std::{ffi::OsString, fs, process::ExitCode};

use k3s_components::Need;
use k3s_config::{Error as ConfigError, Warning};

use super::{
    Failure,
    environment::{environment, refused},
    failure::UNAVAILABLE,
    globals::Globals,
    output::{line, show},
    runtime,
    upstream::libexec,
};

/// What a node cannot do without, by the name the kernel gives it in `/proc/cgroups` or `cgroup.controllers`.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

pub(super) fn run(mut args: Vec<OsString>, globals: Globals) -> Result<ExitCode, Failure> {
    let is_agent = args.first().is_some_and(|word| word == "agent");
    if is_agent || args.first().is_some_and(|word| word == "server") {
        args.remove(0);
    }
    let args = globals.before(args);
    let environment = environment()?;
    let parsed = if is_agent {
        k3s_config::parse_agent(args, &environment).map(|(_, warnings)| (warnings, vec![Need::Node]))
    } else {
        k3s_config::parse_server(args, &environment).map(|(config, warnings)| {
            let node = config.node.is_some().then_some(Need::Node);
            (warnings, [Need::ControlPlane].into_iter().chain(node).collect())
        })
    };
    let (warnings, needs) = match parsed {
        Ok(parsed) => parsed,
        Err(ConfigError::Help(text)) => {
            show(text)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(refused(&error)),
    };
    check_warnings(&warnings)?;
    line("ok       the configuration")?;
    libexec()?.require(&needs).map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;
    line("ok       the components")?;

    let mut report = Report::default();
    if needs.contains(&Need::Node) {
        node_checks(&mut report)?;
    }
    report.end()
}

fn check_warnings(warnings: &[Warning]) -> Result<(), Failure> {
    for warning in warnings.iter().filter(|warning| !matches!(warning, Warning::UnknownKey(_))) {
        line(format_args!("note     {warning}"))?;
    }
    k3s_config::check(warnings).map_err(|unknown| refused(&unknown.into()))
}

fn node_checks(report: &mut Report) -> Result<(), Failure> {
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
    )?;
    match runtime::run(async { Ok(k3s_network::nftables_usable().await) })? {
        Ok(()) => line(
            "ok       nftables; a NodePort does not answer on localhost in this mode: use the node's address, or --kube-proxy-arg=proxy-mode=iptables",
        ),
        Err(reason) => {
            line(format_args!("note     nftables cannot be used ({reason}): Services and pods' way out use iptables"))
        }
    }
}

fn controllers() -> std::collections::BTreeSet<String> {
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
        if good {
            line(format_args!("ok       {what}"))
        } else {
            self.failed += 1;
            line(format_args!("missing  {what}: {remedy}"))
        }
    }

    fn end(self) -> Result<ExitCode, Failure> {
        match self.failed {
            0 => Ok(ExitCode::SUCCESS),
            1 => Err(Failure::new(UNAVAILABLE, "this machine lacks one thing, named above")),
            failed => Err(Failure::new(UNAVAILABLE, format!("this machine lacks {failed} things, named above"))),
        }
    }
}
