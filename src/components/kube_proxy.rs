//! kube-proxy.

use std::{ffi::OsString, net::Ipv4Addr, path::PathBuf, time::Duration};

use k3s_config::args::ComponentArgs;
use k3s_supervise::program::{Probe, Program, Stop};
use serde_json::{Value, json};

use crate::{
    Node, Paths, capabilities,
    kube_proxy_fields::{is_field, set},
    launch::{File, Flags, Launch, health_probe},
    libexec::Components,
    resources::Collector,
    user_config::{KUBE_PROXY_API, KUBE_PROXY_KIND, UserConfigs, merge},
};

const HEALTH_PORT: u16 = 10256;

const COLLECTOR: Collector = Collector { standard: None, small: 50 };

/// kube-proxy for `node`, with the `user`'s configuration above ours. Conntrack limits are left alone: the host setup sets them where it may, as
/// k3s does.
pub fn kube_proxy(node: &Node, paths: &Paths, found: &Components, user: &UserConfigs) -> Launch {
    let mut flags = Flags::default();
    flags
        .set("proxy-mode", node.proxy_mode.flag())
        .path("kubeconfig", paths.kube_proxy_kubeconfig())
        .list("cluster-cidr", &node.network.cluster_cidrs)
        .set("hostname-override", &node.config.name)
        .set("healthz-bind-address", Ipv4Addr::LOCALHOST)
        .set("conntrack-max-per-core", 0)
        .set("conntrack-tcp-timeout-established", "0s")
        .set("conntrack-tcp-timeout-close-wait", "0s")
        .verbosity(node.verbosity);
    let (args, files) = match &user.kube_proxy {
        None => (flags.merged(&node.config.kube_proxy_args), Vec::new()),
        Some(user) => with_file(flags, user, &node.config.kube_proxy_args, paths.agent_etc("kube-proxy.json")),
    };
    Launch {
        files,
        program: Program {
            args,
            env: COLLECTOR.env(node.profile),
            after: vec!["kube-apiserver".into()],
            readiness: health(node, user),
            stop: Stop { timeout: Duration::from_secs(5), ..Stop::default() },
            oom_score_adj: Some(-999),
            capabilities: capabilities::of_kube_proxy(),
            ..Program::new("kube-proxy", found.path("kube-proxy"))
        },
    }
}

/// kube-proxy takes hardly a flag beside a configuration file, so all of ours and of the user's go into one, each above the one before: our
/// flags, the user's file, the user's flags.
fn with_file(mut ours: Flags, user: &Value, args: &ComponentArgs, path: PathBuf) -> (Vec<OsString>, Vec<File>) {
    let mut config = json!({"apiVersion": KUBE_PROXY_API, "kind": KUBE_PROXY_KIND});
    for (name, text) in ours.take(is_field) {
        set(&mut config, &name, &text);
    }
    merge(&mut config, user.clone());
    let (fields, others): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| is_field(&arg.name));
    for arg in &fields {
        set(&mut config, &arg.name, &arg.value);
    }
    ours.path("config", path.clone());
    (ours.merged(&others.into_iter().collect()), vec![File { path, content: format!("{config:#}\n") }])
}

/// Healthy only once its rules are in place and its node is known: /livez leaves the node out.
fn health(node: &Node, user: &UserConfigs) -> Probe {
    let given = node.config.kube_proxy_args.value_of("healthz-bind-address");
    let in_file = user.kube_proxy.as_ref().and_then(|config| config["healthzBindAddress"].as_str());
    match given.or(in_file) {
        // It is switched off.
        Some("") => Probe::Started,
        bind => health_probe(bind.unwrap_or_default(), HEALTH_PORT, "/livez"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, node, paths};

    #[test]
    fn the_users_file_goes_above_ours_and_below_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy.yaml");
        let yaml = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    mode: iptables\nmetricsBindAddress: 0.0.0.0:10249\nhealthzBindAddress: 0.0.0.0:10300\n\
                    conntrack: {min: 7}\n";
        std::fs::write(&file, yaml).unwrap();
        let node = node(&[
            &format!("--kube-proxy-arg=config={}", file.display()),
            "--kube-proxy-arg=metrics-bind-address=127.0.0.1:10250",
            "--kube-proxy-arg=v=4",
        ]);
        let user = UserConfigs::read(&node.config, &paths().agent_etc("kubelet.conf.d")).unwrap();
        let Launch { files, program } = kube_proxy(&node, &paths(), &found(), &user);
        assert_eq!(program.args, ["--config=/data/agent/etc/kube-proxy.json", "--hostname-override=edge", "--v=4"]);
        let config: Value = serde_json::from_str(&files[0].content).unwrap();
        let expected = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": "/data/agent/kubeproxy.kubeconfig"},
            "clusterCIDR": "10.42.0.0/16",
            "healthzBindAddress": "0.0.0.0:10300",
            "metricsBindAddress": "127.0.0.1:10250",
            "conntrack": {"maxPerCore": 0, "min": 7, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        assert_eq!((config, &files[0].path), (expected, &"/data/agent/etc/kube-proxy.json".into()));
        let Probe::Http { address, .. } = program.readiness else { panic!("it tells its health") };
        assert_eq!(address.to_string(), "127.0.0.1:10300");
    }

    #[test]
    fn without_a_file_everything_is_a_flag() {
        let Launch { files, program } = kube_proxy(&node(&[]), &paths(), &found(), &UserConfigs::default());
        assert!(files.is_empty() && program.args.contains(&"--proxy-mode=nftables".into()), "{:?}", program.args);
    }
}
