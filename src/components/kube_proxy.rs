//! kube-proxy.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use k3s_supervise::program::{Descendants, Probe, Program, Resources, Stop};

use crate::{
    Node, Paths, capabilities,
    launch::{Flags, Launch},
    libexec::Components,
};

const HEALTH_PORT: u16 = 10256;

/// kube-proxy for `node`. Conntrack limits are left alone: the host setup sets them where it may, as k3s does.
pub fn kube_proxy(node: &Node, paths: &Paths, found: &Components) -> Launch {
    let mut flags = Flags::default();
    flags
        .set("proxy-mode", node.proxy_mode.flag())
        .path("kubeconfig", paths.agent().join("kubeproxy.kubeconfig"))
        .list("cluster-cidr", &node.network.cluster_cidrs)
        .set("hostname-override", &node.config.name)
        .set("healthz-bind-address", Ipv4Addr::LOCALHOST)
        .set("conntrack-max-per-core", 0)
        .set("conntrack-tcp-timeout-established", "0s")
        .set("conntrack-tcp-timeout-close-wait", "0s")
        .verbosity(node.verbosity);
    Launch {
        files: Vec::new(),
        program: Program {
            name: "kube-proxy".into(),
            executable: found.path("kube-proxy"),
            arg0: "kube-proxy".into(),
            args: flags.merged(&node.config.kube_proxy_args),
            env: BTreeMap::new(),
            working_dir: None,
            after: vec!["kube-apiserver".into()],
            // Healthy only once its rules are in place and its node is known: /livez leaves the node out.
            readiness: Probe::Http { address: (Ipv4Addr::LOCALHOST, HEALTH_PORT).into(), path: "/livez".into() },
            liveness: None,
            stop: Stop { timeout: Duration::from_secs(5), ..Stop::default() },
            resources: Resources::default(),
            oom_score_adj: Some(-999),
            capabilities: capabilities::of_kube_proxy(),
            descendants: Descendants::End,
            log_file: None,
        },
    }
}
