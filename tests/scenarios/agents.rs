//! One server and two agents: what a user does with nodes that only ever connect outwards.

use cluster_tests::{Network, Node, PATIENCE, step};

/// A pod on each agent, which serves its node's name.
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
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions: [{key: node-role.kubernetes.io/control-plane, operator: DoesNotExist}]
      containers:
      - name: web
        image: docker.io/k3s-rs/demo:0.1.0
        command: [sh, -c, "mkdir -p /www && echo $NODE > /www/index.html && echo on $NODE && exec httpd -f -p 8080 -h /www"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
"#;

/// Drops what comes in by itself: answers to what the node asked for, and its own loopback, are all that passes.
const WALL: &str = "nft -f - <<'END'
table inet wall {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname lo accept
    iifname cni0 accept
    ip protocol icmp accept
  }
}
END";

#[test]
fn agents_join() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let agents = ["agent-1", "agent-2"].map(|name| Node::boot(&network, name));
    step("three nodes get Ready", || {
        server.start_k3s("");
        for agent in &agents {
            agent.give_demo_image();
            agent.succeed(WALL);
            agent.start_k3s_agent(&server, "");
        }
        server.wait_until_ready();
        for agent in &agents {
            server.wait_until_node_ready(agent.name());
        }
    });
    step("each runs its components and nothing of a control plane", || {
        for agent in &agents {
            let children: Vec<_> =
                agent.wait_for_components(|components| components.contains_key("kube-proxy")).into_keys().collect();
            assert_eq!(children, ["containerd", "kube-proxy", "kubelet"]);
            let told = server.kubectl(&format!(
                "get node {} -o jsonpath='{{.status.addresses[0].address}} {{.metadata.annotations.k3s\\.io/internal-ip}}'",
                agent.name()
            ));
            assert_eq!(told, format!("{0} {0}", agent.address()));
        }
    });
    step("pods run on both", || {
        server.apply(PODS);
        server.wait_until_succeeds("k3s kubectl rollout status daemonset/web --timeout=20s", PATIENCE);
    });
    step("an agent ends when asked to, and leaves its pods running", || {
        agents[0].succeed("pid=$(pgrep -x k3s); kill -TERM $pid; tail --pid=$pid -f /dev/null");
        agents[0].fail("pgrep -x kubelet || pgrep -x containerd || pgrep -x kube-proxy");
        agents[0].succeed("pgrep -x httpd");
    });
}
