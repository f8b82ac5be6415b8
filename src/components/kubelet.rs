//! kubelet: its drop-in configuration and its flags.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use k3s_config::agent::{Taint, TaintEffect};
use k3s_supervise::capability::Capabilities;
use k3s_supervise::program::{Descendants, Liveness, Probe, Program, Resources, Stop};
use serde_json::{Value, json};

use crate::{
    Node, Paths,
    launch::{File, Flags, Launch},
    libexec::Components,
};

const HEALTH_PORT: u16 = 10248;

/// kubelet for `node`. It starts beside kube-apiserver and registers as soon as that answers.
pub fn kubelet(node: &Node, paths: &Paths, found: &Components) -> Launch {
    let config_dir = paths.agent_etc("kubelet.conf.d");
    let mut flags = Flags::default();
    flags
        .path("config-dir", config_dir.clone())
        .path("kubeconfig", paths.agent().join("kubelet.kubeconfig"))
        .set("hostname-override", &node.config.name)
        .list("node-ip", &node.ips)
        .set("read-only-port", 0)
        .verbosity(node.verbosity);
    if node.cloud_provider_external {
        flags.set("cloud-provider", "external");
    }
    if !node.config.labels.is_empty() {
        let labels: Vec<_> = node.config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        flags.list("node-labels", &labels);
    }
    let health = Probe::Http { address: (Ipv4Addr::LOCALHOST, HEALTH_PORT).into(), path: "/healthz".into() };
    Launch {
        files: vec![File {
            path: config_dir.join("00-k3s-defaults.conf"),
            content: format!("{:#}\n", configuration(node, paths)),
        }],
        program: Program {
            name: "kubelet".into(),
            executable: found.path("kubelet"),
            arg0: "kubelet".into(),
            args: flags.merged(&node.config.kubelet_args),
            env: BTreeMap::new(),
            working_dir: None,
            after: vec!["containerd".into(), "images".into()],
            readiness: health.clone(),
            liveness: Some(Liveness {
                probe: health,
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(10),
                failures: 6,
            }),
            stop: Stop { timeout: Duration::from_secs(10), ..Stop::default() },
            resources: Resources::default(),
            oom_score_adj: Some(-999),
            capabilities: Capabilities::Inherited,
            descendants: Descendants::Outlive,
            log_file: None,
        },
    }
}

/// A KubeletConfiguration of k3s' defaults; a user's drop-ins sort after it and win.
fn configuration(node: &Node, paths: &Paths) -> Value {
    let agent = paths.agent();
    let containerd = format!("unix://{}", paths.containerd_socket().display());
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "healthzBindAddress": SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT)).ip(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": "2m0s"},
            "x509": {"clientCAFile": agent.join("client-ca.crt")},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
        },
        "tlsCertFile": agent.join("serving-kubelet.crt"),
        "tlsPrivateKeyFile": agent.join("serving-kubelet.key"),
        "cgroupDriver": node.cgroup_driver.name(),
        "clusterDomain": node.network.cluster_domain,
        "clusterDNS": node.network.cluster_dns,
        "containerRuntimeEndpoint": containerd,
        "imageServiceEndpoint": containerd,
        "resolvConf": node.resolv_conf,
        "staticPodPath": agent.join("pod-manifests"),
        "failSwapOn": false,
        "evictionHard": {"imagefs.available": "5%", "nodefs.available": "5%"},
        "evictionMinimumReclaim": {"imagefs.available": "10%", "nodefs.available": "10%"},
        "serializeImagePulls": false,
        "protectKernelDefaults": node.config.protect_kernel_defaults,
        "allowedUnsafeSysctls": ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"],
    });
    if !node.cgroup_v2 {
        // Kubernetes refuses to start on v1 unless told that this is known.
        config["failCgroupV1"] = json!(false);
    }
    if !node.config.taints.is_empty() {
        config["registerWithTaints"] = node.config.taints.iter().map(taint).collect();
    }
    config
}

fn taint(taint: &Taint) -> Value {
    let effect = match taint.effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    };
    json!({"key": taint.key, "value": taint.value, "effect": effect})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, node, paths};

    fn defaults(node: &Node) -> Value {
        serde_json::from_str(&kubelet(node, &paths(), &found()).files[0].content).unwrap()
    }

    #[test]
    fn cgroup_v1_is_tolerated_only_where_it_is() {
        let mut node = node(&[]);
        assert_eq!(defaults(&node)["failCgroupV1"], false);
        node.cgroup_v2 = true;
        assert_eq!(defaults(&node).get("failCgroupV1"), None);
    }

    #[test]
    fn labels_are_flags_and_taints_are_configuration() {
        let node = node(&["--node-label=site=north", "--node-taint=only=cameras:NoExecute"]);
        let launch = kubelet(&node, &paths(), &found());
        assert!(launch.program.args.contains(&"--node-labels=site=north".into()));
        let taint = json!([{"key": "only", "value": "cameras", "effect": "NoExecute"}]);
        assert_eq!(defaults(&node)["registerWithTaints"], taint);
    }
}
