//! kube-controller-manager, without the controllers that a cloud provider would bring.

use k3s_config::ControlPlaneConfig;

use crate::{Paths, control_loop::ControlLoop, launch::Launch, libexec::Components};

const CONTROLLER_MANAGER: ControlLoop =
    ControlLoop { name: "kube-controller-manager", kubeconfig: "controller.kubeconfig", port: 10257 };

/// kube-controller-manager for `config`. It signs CSRs with the cluster's CAs and hands each node its pod range.
pub fn kube_controller_manager(config: ControlPlaneConfig<'_>, paths: &Paths, found: &Components) -> Launch {
    let mut flags = CONTROLLER_MANAGER.flags(config, paths);
    flags
        .set(
            "controllers",
            if config.disabled.cloud_controller {
                "*,tokencleaner"
            } else {
                "*,tokencleaner,-service,-route,-cloud-node-lifecycle"
            },
        )
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
        .set("kube-api-burst", 400);
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
    CONTROLLER_MANAGER.launch(flags, &config.args.kube_controller_manager, config, paths, found)
}
