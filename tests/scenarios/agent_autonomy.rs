//! A node that has joined, and whose server is gone: for a restart of its own, for a reboot, and until the server is back.

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::worker::POD;

const STATIC_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: beacon, namespace: kube-system}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: beacon, image: "docker.io/k3s-rs/demo:0.1.0", command: [httpd, -f, -p, "7070", -h, /]}
"#;

#[test]
fn a_node_works_on_without_its_server() {
    let network = Network::new();
    let (mut server, mut agent) = (Node::boot(&network, "server"), Node::boot(&network, "agent"));
    step("a node with a static pod and another", || {
        server.start_k3s("");
        agent.give_demo_image();
        agent.write("/var/lib/rancher/k3s/agent/pod-manifests/beacon.yaml", STATIC_POD);
        agent.start_k3s_agent(&server, "");
        server.wait_until_node_ready("agent");
        server.apply(POD);
        server.kubectl("wait --for=condition=Ready pod/worker --timeout=120s");
        server.wait_until_succeeds("k3s kubectl -n kube-system get pod beacon-agent", PATIENCE);
    });
    let containers = |agent: &Node| agent.succeed("k3s ctr task list | tail -n +2 | awk '{print $1, $2}' | sort");
    let before = containers(&agent);
    let serves = "ip=$(nsenter -t $(pgrep -xo httpd) -n ip -4 -o address show eth0 | awk '{print $4}')
                  curl -sSf --max-time 3 http://${ip%/*}:7070/etc/hostname";
    step("k3s starts again without a server: the same containers run on", || {
        server.crash();
        agent.stop_k3s();
        agent.restart_k3s_agent("");
        for component in ["containerd", "kubelet"] {
            agent.wait_until_component_ready(component);
        }
        assert_eq!(containers(&agent), before);
        agent.succeed("pgrep -x sleep && pgrep -x httpd");
    });
    step("the status says what waits", || {
        let status = agent.wait_for_status("no server can be reached");
        assert!(status.contains(&format!("{}:6443", server.address())), "{status}");
        assert!(status.contains("kube-proxy"), "{status}");
    });
    step("the node reboots without a server: its static pod runs, with a network", || {
        agent.crash();
        agent.start();
        agent.restart_k3s_agent("");
        agent.wait_until_succeeds("pgrep -x httpd", PATIENCE);
        agent.wait_until_succeeds(serves, PATIENCE);
        agent.wait_for_status("no server can be reached");
    });
    step("the server is back: everything reconciles, and nothing is restarted for it", || {
        let alone = agent.components();
        server.start();
        server.start_k3s("");
        agent.wait_for_components(|running| running.contains_key("kube-proxy"));
        server.wait_until_node_ready("agent");
        agent.wait_until_succeeds("pgrep -x sleep", PATIENCE);
        server.kubectl("wait --for=condition=Ready pod/worker --timeout=120s");
        server.wait_until_succeeds("k3s kubectl -n kube-system get pod beacon-agent | grep -q Running", PATIENCE);
        agent.wait_until_succeeds("! k3s status | grep -q 'no server can be reached'", PATIENCE);
        let together = agent.components();
        assert!(alone.iter().all(|(name, process)| together[name] == *process), "{alone:?} {together:?}");
    });
}
