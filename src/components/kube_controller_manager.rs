//! kube-controller-manager, without the controllers that a cloud provider would bring.

use std::{collections::BTreeMap, time::Duration};

use k3s_config::server::ServerConfig;
use k3s_supervise::program::{Program, Resources, Stop};

use crate::{
    Paths,
    kube_scheduler::loopback_health,
    launch::{Flags, Launch},
    libexec::Components,
};

const PORT: u16 = 10257;

/// kube-controller-manager for `config`. It signs CSRs with the cluster's CAs and hands each node its pod range.
pub fn kube_controller_manager(config: &ServerConfig, paths: &Paths, found: &Components) -> Launch {
    let kubeconfig = paths.cred("controller.kubeconfig");
    let mut flags = Flags::default();
    flags
        .set(
            "controllers",
            if config.disabled.cloud_controller {
                "*,tokencleaner"
            } else {
                "*,tokencleaner,-service,-route,-cloud-node-lifecycle"
            },
        )
        .path("kubeconfig", kubeconfig.clone())
        .path("authorization-kubeconfig", kubeconfig.clone())
        .path("authentication-kubeconfig", kubeconfig)
        .path("service-account-private-key-file", paths.tls("service.current.key"))
        .path("root-ca-file", paths.tls("server-ca.crt"))
        .set("allocate-node-cidrs", true)
        .list("cluster-cidr", &config.network.cluster_cidrs)
        .list("service-cluster-ip-range", &config.network.service_cidrs)
        .set("configure-cloud-routes", false)
        .set("use-service-account-credentials", true)
        // Every controller gets a service account and a token before it starts: at the default of 20 requests a second the last of
        // them, which give nodes their pod ranges, would start after five seconds.
        .set("kube-api-qps", 200)
        .set("kube-api-burst", 400)
        // One server: nobody to elect against, and a lease renewed every two seconds is wear.
        .set("leader-elect", false)
        .set("bind-address", "127.0.0.1")
        .set("secure-port", PORT)
        .path("tls-cert-file", paths.tls("kube-controller-manager/kube-controller-manager.crt"))
        .path("tls-private-key-file", paths.tls("kube-controller-manager/kube-controller-manager.key"))
        .set("profiling", false)
        .verbosity(config.verbosity);
    for (usage, ca) in [
        ("kube-apiserver-client", "client-ca"),
        ("kubelet-client", "client-ca"),
        ("kubelet-serving", "server-ca"),
        ("legacy-unknown", "server-ca"),
    ] {
        flags
            .path(&format!("cluster-signing-{usage}-cert-file"), paths.tls(&format!("{ca}.nochain.crt")))
            .path(&format!("cluster-signing-{usage}-key-file"), paths.tls(&format!("{ca}.key")));
    }
    Launch {
        files: Vec::new(),
        program: Program {
            name: "kube-controller-manager".into(),
            executable: found.path("kube-controller-manager"),
            arg0: "kube-controller-manager".into(),
            args: flags.merged(&config.args.kube_controller_manager),
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
