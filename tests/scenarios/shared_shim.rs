//! On a small node one process is the shim of all pods: what a user sees of that, and what its end costs.

use cluster_tests::{Network, Node, PATIENCE, step};

/// A Deployment of five, each of which says its name once and then lives.
const FIVE: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: five}
spec:
  replicas: 5
  selector: {matchLabels: {app: five}}
  template:
    metadata: {labels: {app: five}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: idle, image: "docker.io/k3s-rs/demo:0.1.0", command: [sh, -c, "hostname; exec sleep 1000000"]}
"#;

#[test]
fn pods_of_a_small_node_share_a_shim() {
    let network = Network::new();
    let node = Node::boot(&network, "server");
    step("six pods and one shim run", || {
        node.give_demo_image();
        node.start_k3s("--resource-profile=small");
        node.wait_until_ready();
        node.apply(FIVE);
        node.wait_for_deployment("default", "five");
        node.wait_for_deployment("kube-system", "coredns");
        assert_eq!(shims(&node).len(), 1);
    });
    step("exec and logs reach each pod", || {
        for pod in pods(&node) {
            assert_eq!(node.kubectl(&format!("exec {pod} -- hostname")).trim(), pod);
            assert_eq!(node.kubectl(&format!("logs {pod}")).trim(), pod);
        }
    });
    step("the shim stays when the pod that it was started for goes", || {
        let known = shims(&node);
        node.kubectl("-n kube-system rollout restart deployment/coredns");
        node.kubectl("rollout restart deployment/five");
        node.wait_for_deployment("kube-system", "coredns");
        node.wait_for_deployment("default", "five");
        node.wait_until_succeeds("test $(k3s kubectl get pods -o name | wc -l) = 5", PATIENCE);
        assert_eq!(shims(&node), known);
    });
    step("k3s finds it and the same containers again, in either profile", || {
        let known = (shims(&node), sleepers(&node));
        for profile in ["small", "standard"] {
            node.stop_k3s();
            node.start_k3s(&format!("--resource-profile={profile}"));
            node.wait_until_ready();
            node.wait_for_deployment("default", "five");
            assert_eq!((shims(&node), sleepers(&node)), known, "{profile}");
        }
        node.kubectl("scale deployment/five --replicas=6");
        node.wait_for_deployment("default", "five");
        assert_eq!(shims(&node).len(), 2, "a pod that the standard profile starts has its own");
        node.stop_k3s();
        node.start_k3s("--resource-profile=small");
        node.wait_until_ready();
    });
    step("when it dies, all of its pods start again", || {
        let before = sleepers(&node);
        node.succeed("kill -9 $(pgrep -x containerd-shim)");
        node.wait_until_succeeds(&format!("! ps -o pid= -p {} | grep .", before.join(",")), PATIENCE);
        node.wait_for_deployment("default", "five");
        node.wait_for_deployment("kube-system", "coredns");
        node.wait_until_succeeds(&format!("test $({SLEEPERS} | wc -l) = 6"), PATIENCE);
        assert_eq!(shims(&node).len(), 1);
    });
    step("k3s stop --all leaves none", || {
        node.succeed("k3s stop --all");
        assert_eq!((shims(&node), sleepers(&node)), (Vec::new(), Vec::new()));
    });
}

const SLEEPERS: &str = "pgrep -f '^sleep 100000[0]' | sort -n";

/// The first processes of the Deployment's containers.
fn sleepers(node: &Node) -> Vec<String> {
    node.succeed(SLEEPERS).lines().map(str::to_owned).collect()
}

fn shims(node: &Node) -> Vec<String> {
    node.succeed("pgrep -x containerd-shim | sort -n").lines().map(str::to_owned).collect()
}

fn pods(node: &Node) -> Vec<String> {
    let names = node.kubectl("get pods -l app=five -o name");
    names.lines().map(|name| name.trim_start_matches("pod/").to_owned()).collect()
}
