//! The product as a container image: a server in a privileged container of a plain containerd, and an agent in another one on another host.

use std::fs;

use cluster_tests::{LIGHT, Network, Node, PATIENCE, step};

/// A containerd beside which there is no k3s.
const CONTAINERD: &str = "/run/outer/containerd.sock";

/// containerd, its shim, `ctr` and `runc`.
const PROGRAMS: &str = "/opt/k3s/libexec/k3s";

const PODS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "docker.io/k3s-rs/demo:0.1.0", ports: [{containerPort: 8080}]}
"#;

#[test]
fn a_server_and_an_agent_run_in_containers() {
    let network = Network::new();
    let (first, second) = (Node::boot(&network, "first"), Node::boot(&network, "second"));
    step("two hosts have the image", || [&first, &second].into_iter().for_each(prepare));
    step("a server in a container gets Ready", || {
        run(&first, &format!("server {LIGHT}"));
        first.wait_until_succeeds(&inside("k3s kubectl wait --for=condition=Ready node --all --timeout=5s"), PATIENCE);
    });
    step("an agent in a container joins it", || {
        let token = first.wait_until_succeeds("cat /var/volume/server/token", PATIENCE);
        run(&second, &format!("agent --server=https://{}:6443 --token={}", first.address(), token.trim()));
        first.wait_until_succeeds(&inside("k3s kubectl wait --for=condition=Ready node/second --timeout=5s"), PATIENCE);
    });
    step("pods run on both and reach each other", || {
        first.write("/var/volume/pods.yaml", PODS);
        first.wait_until_succeeds(&inside("k3s kubectl apply -f /var/lib/rancher/k3s/pods.yaml"), PATIENCE);
        first.wait_until_succeeds(&inside("k3s kubectl rollout status daemonset/web --timeout=20s"), PATIENCE);
        let list = |of: &str| {
            first.succeed(&inside(&format!("k3s kubectl get pods -l app=web -o jsonpath={{.items[*].{of}}}")))
        };
        let (names, addresses) = (list("metadata.name"), list("status.podIP"));
        for (name, address) in names.split_whitespace().zip(addresses.split_whitespace().rev()) {
            let page = inside(&format!("k3s kubectl exec {name} -- wget -T 5 -qO- http://{address}:8080/"));
            assert_eq!(first.wait_until_succeeds(&page, PATIENCE).trim(), "Hello from a pod.");
        }
    });
    step("nobody is left unawaited, and SIGTERM ends the container", || {
        first.wait_until_succeeds("! ps -eo stat= | grep -q '^Z'", PATIENCE);
        first.succeed(&ctr("task kill --signal SIGTERM k3s"));
        first.wait_until_succeeds(&format!("{} | grep -E '^k3s .*STOPPED'", ctr("task ls")), PATIENCE);
    });
}

fn prepare(node: &Node) {
    let packages = cluster_tests::target().join("packages");
    let is_image = |name: &str| name.ends_with(".oci.tar");
    let image = fs::read_dir(&packages)
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| entry.file_name().to_str().is_some_and(is_image))
        .unwrap_or_else(|| panic!("target/packages holds no image: build it with `cargo xtask packages --image`"));
    node.write("/etc/outer.toml", "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n");
    fs::copy(image.path(), node.path("/var/k3s.oci.tar")).expect("the node's disk is writable");
    node.background(&format!(
        "PATH={PROGRAMS}:$PATH exec containerd --config /etc/outer.toml --root /var/outer --state /run/outer --address {CONTAINERD}"
    ));
    node.wait_until_succeeds(&ctr("version"), PATIENCE);
    node.succeed(&ctr("image import --local /var/k3s.oci.tar && rm /var/k3s.oci.tar"));
    node.succeed("mkdir -p /var/volume/agent/images && cp /opt/k3s-test/images/demo.tar /var/volume/agent/images/");
}

/// With what a container runtime for people adds by itself: the host's name and the files that tell of it.
fn run(node: &Node, arguments: &str) {
    let bind = |from: &str, to: &str| format!("--mount type=bind,src={from},dst={to},options=rbind:rw");
    let mounts = [
        bind("/var/volume", "/var/lib/rancher/k3s"),
        bind("/sys/fs/cgroup", "/sys/fs/cgroup"),
        bind("/etc/hosts", "/etc/hosts"),
        bind("/etc/resolv.conf", "/etc/resolv.conf"),
    ]
    .join(" ");
    let image = node.succeed(&ctr("image ls -q"));
    node.succeed(&ctr(&format!(
        "run -d --privileged --net-host --hostname {} --log-uri file:///var/log/k3s.log {mounts} {} k3s k3s {arguments}",
        node.name(),
        image.trim(),
    )));
}

/// A command in the container.
fn inside(command: &str) -> String {
    ctr(&format!("task exec --exec-id x$$ k3s {command}"))
}

fn ctr(command: &str) -> String {
    format!("PATH={PROGRAMS}:$PATH ctr --address {CONTAINERD} {command}")
}
