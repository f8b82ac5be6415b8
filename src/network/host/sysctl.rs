//! Kernel settings below `/proc/sys`. Those of `net` belong to the network namespace of the thread that writes them.

use std::{fs, io, num::NonZero, path::Path, thread, time::Duration};

use tracing::{debug, info};

use super::{HostPlan, Warning};

pub(super) const PROC_SYS: &str = "/proc/sys";

/// Limits of connection tracking. kube-proxy could set them too, but is told not to: it gives up where it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each CPU; 0 leaves the limit alone.
    pub max_per_core: u64,
    /// The fewest connections however few CPUs there are.
    pub min: u64,
    /// How long an established TCP connection may be silent; zero leaves it alone.
    pub tcp_established: Duration,
    /// How long one waits for its last close; zero leaves it alone.
    pub tcp_close_wait: Duration,
}

impl Default for Conntrack {
    /// kube-proxy's own defaults.
    fn default() -> Self {
        Self {
            max_per_core: 32768,
            min: 131_072,
            tcp_established: Duration::from_hours(24),
            tcp_close_wait: Duration::from_hours(1),
        }
    }
}

impl Conntrack {
    fn max(&self, cpus: u64) -> u64 {
        if self.max_per_core == 0 { 0 } else { self.min.max(self.max_per_core * cpus) }
    }
}

struct Sysctl {
    /// Below `/proc/sys`.
    path: &'static str,
    want: Want,
    key: &'static str,
    consequence: &'static str,
}

#[derive(Clone, Copy)]
enum Want {
    Exactly(u64),
    /// An administrator's higher limit is not lowered.
    AtLeast(u64),
}

impl Want {
    fn value(self) -> u64 {
        match self {
            Self::Exactly(value) | Self::AtLeast(value) => value,
        }
    }

    fn met_by(self, present: u64) -> bool {
        match self {
            Self::Exactly(value) => present == value,
            Self::AtLeast(value) => present >= value,
        }
    }
}

/// Sets what `plan` asks for below `root`, writing only what differs; what cannot be set becomes a warning.
pub(super) fn apply(root: &Path, plan: &HostPlan, ipv6: bool) -> Vec<Warning> {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let mut warnings: Vec<Warning> = Vec::new();
    for sysctl in wanted(plan, ipv6, cpus) {
        let Err(error) = ensure(root, &sysctl) else { continue };
        let (name, value) = (sysctl.path.replace('/', "."), sysctl.want.value());
        debug!(%error, name, "A kernel setting cannot be made.");
        // Settings that belong together fail together: one sentence is enough.
        if !warnings.iter().any(|warning| warning.key == sysctl.key) {
            warnings.push(Warning {
                key: sysctl.key,
                sentence: format!("{name} could not be set to {value} ({error}): {}", sysctl.consequence),
            });
        }
    }
    warnings
}

fn wanted(plan: &HostPlan, ipv6: bool, cpus: u64) -> Vec<Sysctl> {
    let exactly = |key, path, consequence, value| Sysctl { path, want: Want::Exactly(value), key, consequence };
    let forwarding = |path, value| {
        let consequence = "pods reach nothing outside their node until `sysctl` or the host's configuration sets it.";
        exactly("ip-forwarding", path, consequence, value)
    };
    let bridge = |path| {
        let consequence = "a pod does not reach a Service whose backend is on the same node until the kernel module br_netfilter is loaded.";
        exactly("bridge-netfilter", path, consequence, 1)
    };
    let timeout = |path, timeout: Duration| {
        let consequence = "connections are tracked for the kernel's own time; set it on the host if that matters.";
        exactly("conntrack-timeouts", path, consequence, timeout.as_secs())
    };

    let mut wanted =
        vec![forwarding("net/ipv4/conf/all/forwarding", 1), forwarding("net/ipv4/conf/default/forwarding", 1)];
    if plan.filter_bridges {
        wanted.push(bridge("net/bridge/bridge-nf-call-iptables"));
    }
    if ipv6 {
        wanted.push(forwarding("net/ipv6/conf/all/forwarding", 1));
        wanted.push(forwarding("net/ipv6/conf/default/forwarding", 1));
        wanted.push(exactly(
            "ipv6-inheritance",
            "net/core/devconf_inherit_init_net",
            "new pods may come up without IPv6 forwarding; set it on the host if pods route.",
            1,
        ));
        if plan.filter_bridges {
            wanted.push(bridge("net/bridge/bridge-nf-call-ip6tables"));
        }
    }
    if plan.conntrack.max(cpus) > 0 {
        wanted.push(Sysctl {
            path: "net/netfilter/nf_conntrack_max",
            want: Want::AtLeast(plan.conntrack.max(cpus)),
            key: "conntrack-max",
            consequence: "new connections are dropped when the table is full; raise it on the host.",
        });
    }
    for (path, value) in [
        ("net/netfilter/nf_conntrack_tcp_timeout_established", plan.conntrack.tcp_established),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", plan.conntrack.tcp_close_wait),
    ] {
        if !value.is_zero() {
            wanted.push(timeout(path, value));
        }
    }
    wanted
}

fn ensure(root: &Path, sysctl: &Sysctl) -> io::Result<()> {
    let path = root.join(sysctl.path);
    let present = fs::read_to_string(&path)?;
    if present.trim().parse().is_ok_and(|present| sysctl.want.met_by(present)) {
        return Ok(());
    }
    let value = sysctl.want.value();
    fs::write(&path, value.to_string())?;
    info!(name = sysctl.path, from = present.trim(), to = value, "Changed a kernel setting.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> HostPlan {
        HostPlan { cluster_cidrs: Vec::new(), filter_bridges: true, conntrack: Conntrack::default() }
    }

    fn tree(settings: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in settings {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        root
    }

    #[test]
    fn limits_follow_the_cpus_down_to_a_floor() {
        let conntrack = Conntrack::default();
        assert_eq!(conntrack.max(2), 131_072);
        assert_eq!(conntrack.max(64), 2_097_152);
        assert_eq!(Conntrack { max_per_core: 0, ..conntrack }.max(64), 0);
    }

    #[test]
    fn settings_are_made_and_higher_limits_kept() {
        let root = tree(&[
            ("net/ipv4/conf/all/forwarding", "0\n"),
            ("net/ipv4/conf/default/forwarding", "1\n"),
            ("net/bridge/bridge-nf-call-iptables", "0\n"),
            ("net/netfilter/nf_conntrack_max", "9999999\n"),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", "432000\n"),
            ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60\n"),
        ]);
        assert_eq!(apply(root.path(), &plan(), false), []);
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("net/ipv4/conf/all/forwarding"), "1");
        assert_eq!(read("net/ipv4/conf/default/forwarding"), "1\n", "untouched");
        assert_eq!(read("net/netfilter/nf_conntrack_max"), "9999999\n", "untouched");
        assert_eq!(read("net/netfilter/nf_conntrack_tcp_timeout_established"), "86400");
    }

    #[test]
    fn what_cannot_be_set_says_what_follows() {
        let root = tree(&[
            ("net/ipv4/conf/all/forwarding", "1\n"),
            ("net/ipv4/conf/default/forwarding", "1\n"),
            ("net/netfilter/nf_conntrack_max", "262144\n"),
        ]);
        let conntrack =
            Conntrack { tcp_established: Duration::ZERO, tcp_close_wait: Duration::ZERO, ..Conntrack::default() };
        let warnings = apply(root.path(), &HostPlan { conntrack, ..plan() }, true);
        let keys: Vec<_> = warnings.iter().map(|warning| warning.key).collect();
        assert_eq!(keys, ["bridge-netfilter", "ip-forwarding", "ipv6-inheritance"]);
        assert!(
            warnings[0].sentence.starts_with("net.bridge.bridge-nf-call-iptables could not be set to 1 (No such file")
        );
    }
}
