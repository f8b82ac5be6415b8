//! What a user brings along: a data directory elsewhere, proxies in the environment, files for components; and a host that lacks something.

use cluster_tests::{Network, Node, PATIENCE, step};
use serde_json::Value;

use crate::refusal::{UNAVAILABLE, last_line};

/// Told by nothing but the configuration file.
const DATA: &str = "/var/lib/elsewhere";

const CONFIG: &str = "\
data-dir: /var/lib/elsewhere
kubelet-arg: [config=/var/kubelet.yaml, config-dir=/var/kubelet.d, max-pods=55]
kube-proxy-arg: [config=/var/proxy.yaml, v=1]
";

const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
serializeImagePulls: true
evictionHard: {memory.available: 1%}
podsPerCore: 33
maxPods: 44
";

const KUBELET_MORE: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
podsPerCore: 34
";

const PROXY: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
configSyncPeriod: 14m0s
";

/// In the format of containerd 1, as users of k3s and NixOS have it.
const TEMPLATE: &str = r#"{{ template "base" . }}
# MAGIC COMMENT
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
  runtime_type = "io.containerd.runc.v2"
"#;

/// A page, and a pod to ask from, of the other runtime.
const PODS: &str = r#"
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: other}
handler: other
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  runtimeClassName: other
  containers:
  - {name: web, image: "docker.io/k3s-rs/demo:0.1.0"}
"#;

#[test]
fn what_a_user_brings_along_counts() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    server.write("/etc/rancher/k3s/config.yaml", CONFIG);
    server.write("/var/kubelet.yaml", KUBELET);
    server.write("/var/kubelet.d/10-more.conf", KUBELET_MORE);
    server.write("/var/proxy.yaml", PROXY);
    server.write(&format!("{DATA}/agent/etc/containerd/config.toml.tmpl"), TEMPLATE);
    server.succeed(&format!("mkdir -p {DATA}/agent/images && cp /opt/k3s-test/images/demo.tar {DATA}/agent/images/"));
    let proxies = "HTTPS_PROXY=http://127.0.0.1:9 CONTAINERD_HTTPS_PROXY=http://127.0.0.1:8";
    let start = || server.start_k3s_with(proxies, "");
    let k3s = step("the node gets Ready beside a proxy that nobody answers at", || {
        let k3s = start();
        server.wait_until_ready();
        k3s
    });
    step("verbs find the node, and go by no proxy", || {
        let certificates = server.succeed("k3s certificate check");
        assert!(
            certificates.contains("client-admin.crt") && certificates.contains("client-kubelet.crt"),
            "{certificates}"
        );
        server
            .succeed(&format!("{proxies} k3s token create && {proxies} k3s token list && {proxies} k3s token rotate"));
        server.succeed("k3s etcd-snapshot --name=mine && k3s etcd-snapshot ls | grep -q mine-server");
    });
    proxies_of_components(&server);
    files_of_components(&server);
    step("a pod of the template's runtime serves the demo", || {
        server.apply(PODS);
        server.kubectl("wait --for=condition=Ready pod/web --timeout=120s");
        let ip = server.kubectl("get pod web -o jsonpath={.status.podIP}");
        let page = server.kubectl(&format!("exec web -- wget -T 5 -qO- http://{ip}:8080/"));
        assert_eq!(page.trim(), "Hello from a pod.");
        server.fail("k3s kubectl exec web -- wget -T 1 -qO- http://10.99.0.250/");
    });
    step("the log tells nothing of what is waited for by nature", || {
        let forbidden = server.execute("grep -c 'nodes is forbidden' /var/log/k3s.log").stdout;
        assert_eq!(forbidden.trim(), "0");
    });
    step("a host on which no pod starts is told so until it is cured", || {
        server.succeed(&format!("kill -TERM {0} && tail --pid={0} -f /dev/null && rm /etc/hosts", k3s.pid));
        let refused = server.execute("k3s check-config");
        assert_eq!(refused.code, UNAVAILABLE, "{refused}");
        assert!(refused.stdout.contains("missing  /etc/hosts cannot be read"), "{}", last_line(&refused));
        start();
        server.wait_for_status("/etc/hosts cannot be read");
        server.succeed("echo 127.0.0.1 localhost > /etc/hosts");
        server.wait_until_succeeds("k3s status > /tmp/status && ! grep -q /etc/hosts /tmp/status", PATIENCE);
    });
}

fn proxies_of_components(server: &Node) {
    step("components have the proxies that are for them", || {
        let environment =
            |name: &str| server.succeed(&format!("tr '\\0' '\\n' < /proc/$(pgrep -x {name} | head -1)/environ"));
        let has = |environment: &str, line: &str| environment.lines().any(|found| found.starts_with(line));
        let (containerd, kubelet) = (environment("containerd"), environment("kubelet"));
        assert!(has(&containerd, "HTTPS_PROXY=http://127.0.0.1:8"), "{containerd}");
        assert!(has(&kubelet, "HTTPS_PROXY=http://127.0.0.1:9"), "{kubelet}");
        for environment in [&containerd, &kubelet, &environment("kube-apiserver")] {
            assert!(has(environment, "NO_PROXY=.svc,.cluster.local,10.42.0.0/16,10.43.0.0/16"), "{environment}");
        }
    });
}

fn files_of_components(server: &Node) {
    step("kubelet goes by the user's files over ours, and by arguments over both", || {
        let answer = server.kubectl("get --raw /api/v1/nodes/server/proxy/configz");
        let config: Value = serde_json::from_str(&answer).expect("configz is JSON");
        let config = &config["kubeletconfig"];
        assert_eq!(config["serializeImagePulls"], true);
        assert_eq!(config["evictionHard"]["memory.available"], "1%");
        // Ours stays where the user says nothing.
        assert_eq!(config["evictionHard"]["nodefs.available"], "5%");
        assert_eq!((&config["podsPerCore"], &config["maxPods"]), (&Value::from(34), &Value::from(55)));
    });
    step("so does kube-proxy", || {
        let answer = server.wait_until_succeeds("curl -sSf http://127.0.0.1:10249/configz", PATIENCE);
        let config: Value = serde_json::from_str(&answer).expect("configz is JSON");
        let config = &config["kubeproxy.config.k8s.io"];
        assert_eq!(config["configSyncPeriod"], "14m0s", "{config}");
        assert_eq!(config["clientConnection"]["kubeconfig"], format!("{DATA}/agent/kubeproxy.kubeconfig"), "{config}");
    });
    step("containerd goes by the template in its older format", || {
        server.succeed(&format!("grep -q 'MAGIC COMMENT' {DATA}/agent/etc/containerd/config.toml"));
    });
}
