//! kubelet: its drop-in configuration and its flags.

use std::{
    iter,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use k3s_config::agent::{Taint, TaintEffect};
use k3s_supervise::program::{Descendants, Liveness, Probe, Program, Stop};
use serde_json::{Value, json};

use crate::{
    Node, Paths,
    launch::{File, Flags, Launch, health_probe},
    libexec::Components,
    resources::Collector,
    user_config::UserConfigs,
};

const HEALTH_PORT: u16 = 10248;

const COLLECTOR: Collector = Collector { standard: None, small: 50 };

/// kubelet for `node`, with the `user`'s configuration above ours. It starts beside kube-apiserver and registers as soon as that answers.
pub fn kubelet(node: &Node, paths: &Paths, found: &Components, user: &UserConfigs) -> Launch {
    let config_dir = paths.agent_etc("kubelet.conf.d");
    let mut flags = Flags::default();
    flags
        .path("config-dir", config_dir.clone())
        .path("kubeconfig", paths.kubelet_kubeconfig())
        .set("hostname-override", &node.config.name)
        .list("node-ip", &node.ips)
        .verbosity(node.verbosity);
    if node.cloud_provider_external {
        flags.set("cloud-provider", "external");
    }
    if !node.config.labels.is_empty() {
        let labels: Vec<_> = node.config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        flags.list("node-labels", &labels);
    }
    let health = health(node, user);
    let defaults =
        File { path: config_dir.join("00-k3s-defaults.conf"), content: format!("{:#}\n", configuration(node, paths)) };
    Launch {
        files: iter::once(defaults).chain(user.drop_ins(&config_dir)).collect(),
        program: Program {
            args: flags.merged(&node.config.kubelet_args),
            env: COLLECTOR.env(node.profile),
            after: vec!["containerd".into(), "images".into()],
            readiness: health.clone(),
            liveness: (health != Probe::Started).then_some(Liveness {
                probe: health,
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(10),
                failures: 6,
                start: None,
            }),
            stop: Stop { timeout: Duration::from_secs(10), ..Stop::default() },
            oom_score_adj: Some(-999),
            descendants: Descendants::Outlive,
            ..Program::new("kubelet", found.path("kubelet"))
        },
    }
}

/// Where it tells its health: the user may want that elsewhere, or not at all.
fn health(node: &Node, user: &UserConfigs) -> Probe {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let chosen = |flag: &str, field: &str| {
        let given = node.config.kubelet_args.value_of(flag).map(str::to_owned);
        given.or_else(|| user.kubelet.get(field).map(text))
    };
    let address = chosen("healthz-bind-address", "healthzBindAddress").unwrap_or_default();
    match chosen("healthz-port", "healthzPort") {
        Some(port) => health_probe(&address, port.parse().unwrap_or(HEALTH_PORT), "/healthz"),
        None => health_probe(&address, HEALTH_PORT, "/healthz"),
    }
}

/// A KubeletConfiguration of k3s' defaults; a user's drop-ins sort after it and win. It holds all that can stand here, since a flag would win.
fn configuration(node: &Node, paths: &Paths) -> Value {
    let agent = paths.agent();
    let containerd = format!("unix://{}", paths.containerd_socket().display());
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.config.bind_address,
        "readOnlyPort": 0,
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
    use std::ffi::OsString;

    use super::*;
    use crate::testing::{found, node, paths};

    fn defaults(node: &Node) -> Value {
        serde_json::from_str(&kubelet(node, &paths(), &found(), &UserConfigs::default()).files[0].content).unwrap()
    }

    #[test]
    fn cgroup_v1_is_tolerated_only_where_it_is() {
        let mut node = node(&[]);
        assert_eq!(defaults(&node)["failCgroupV1"], false);
        node.cgroup_v2 = true;
        assert_eq!(defaults(&node).get("failCgroupV1"), None);
    }

    /// As in k3s.
    #[test]
    fn kubelet_listens_where_the_node_does() {
        assert_eq!(defaults(&node(&[]))["address"], "0.0.0.0");
        let bound = node(&["--bind-address=192.0.2.7"]);
        assert_eq!(defaults(&bound)["address"], "192.0.2.7");
        assert_eq!(bound.config.kubelet_address().to_string(), "192.0.2.7");
        assert_eq!(node(&[]).config.kubelet_address().to_string(), "127.0.0.1");
    }

    #[test]
    fn labels_are_flags_and_taints_are_configuration() {
        let node = node(&["--node-label=site=north", "--node-taint=only=cameras:NoExecute"]);
        let launch = kubelet(&node, &paths(), &found(), &UserConfigs::default());
        assert!(launch.program.args.contains(&"--node-labels=site=north".into()));
        let taint = json!([{"key": "only", "value": "cameras", "effect": "NoExecute"}]);
        assert_eq!(defaults(&node)["registerWithTaints"], taint);
    }

    /// kubelet merges drop-ins by their names and takes flags over them: nothing that a file can say may be a flag of ours.
    #[test]
    fn the_users_file_goes_above_ours_and_below_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubelet.yaml");
        let yaml = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    serializeImagePulls: true\nreadOnlyPort: 10255\nhealthzPort: 10300\nhealthzBindAddress: 0.0.0.0\n";
        std::fs::write(&file, yaml).unwrap();
        let launch = |more: &[&str]| {
            let arg = format!("--kubelet-arg=config={}", file.display());
            let node = node(&[&[&*arg], more].concat());
            let user = UserConfigs::read(&node.config, &paths().agent_etc("kubelet.conf.d")).unwrap();
            kubelet(&node, &paths(), &found(), &user)
        };
        let Launch { files, program } = launch(&[]);
        let names: Vec<_> = files.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["00-k3s-defaults.conf", "10-cli-config.conf"]);
        assert_eq!(files[1].content, yaml);
        let flags = "--config-dir=/data/agent/etc/kubelet.conf.d --kubeconfig=/data/agent/kubelet.kubeconfig \
                     --cloud-provider=external --hostname-override=edge --node-ip=10.0.0.2";
        let mut flags: Vec<_> = flags.split_whitespace().map(OsString::from).collect();
        flags.sort();
        assert_eq!(program.args, flags);
        let probe = |address: &str| Probe::Http { address: address.parse().unwrap(), path: "/healthz".into() };
        assert_eq!(program.readiness, probe("127.0.0.1:10300"));
        let Launch { program, .. } = launch(&["--kubelet-arg=healthz-port=10301"]);
        assert!(program.args.contains(&"--healthz-port=10301".into()));
        assert_eq!(program.readiness, probe("127.0.0.1:10301"));
        let Launch { program, .. } = launch(&["--kubelet-arg=healthz-port=0"]);
        assert_eq!((program.readiness, program.liveness), (Probe::Started, None));
    }
}
