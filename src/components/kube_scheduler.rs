//! kube-scheduler.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use k3s_config::server::ServerConfig;
use k3s_supervise::program::{Probe, Program, Resources, Stop};

use crate::{
    Paths,
    launch::{Flags, Launch},
    libexec::Components,
};

const PORT: u16 = 10259;

/// kube-scheduler for `config`.
pub fn kube_scheduler(config: &ServerConfig, paths: &Paths, found: &Components) -> Launch {
    let kubeconfig = paths.cred("scheduler.kubeconfig");
    let mut flags = Flags::default();
    flags
        .path("kubeconfig", kubeconfig.clone())
        .path("authorization-kubeconfig", kubeconfig.clone())
        .path("authentication-kubeconfig", kubeconfig)
        .set("leader-elect", false)
        .set("bind-address", "127.0.0.1")
        .set("secure-port", PORT)
        .path("tls-cert-file", paths.tls("kube-scheduler/kube-scheduler.crt"))
        .path("tls-private-key-file", paths.tls("kube-scheduler/kube-scheduler.key"))
        .set("profiling", false)
        .verbosity(config.verbosity);
    Launch {
        files: Vec::new(),
        program: Program {
            name: "kube-scheduler".into(),
            executable: found.path("kube-scheduler"),
            arg0: "kube-scheduler".into(),
            args: flags.merged(&config.args.kube_scheduler),
            env: BTreeMap::new(),
            working_dir: None,
            after: vec!["kube-apiserver".into()],
            readiness: loopback_health(PORT, paths),
            liveness: None,
            stop: Stop { timeout: Duration::from_secs(10), ..Stop::default() },
            resources: Resources::default(),
            oom_score_adj: Some(-400),
            log_file: None,
        },
    }
}

/// `/healthz` on a loopback port with a serving certificate of ours.
pub(crate) fn loopback_health(port: u16, paths: &Paths) -> Probe {
    Probe::Https {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        path: "/healthz".into(),
        ca: paths.tls("server-ca.crt"),
        identity: None,
    }
}
