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
fn agents_join_and_are_reached_through_their_own_connections() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let agents = ["agent-1", "agent-2"].map(|name| Node::boot(&network, name));
    step("three nodes get Ready", || {
        server.start_k3s("--supervisor-metrics");
        for (agent, flags) in agents.iter().zip(["", "--kubelet-arg=port=10350"]) {
            agent.give_demo_image();
            agent.succeed(WALL);
            agent.start_k3s_agent(&server, flags);
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
            // kubelet may say that it is Ready before the agent has said more of it.
            let addresses = format!(
                "k3s kubectl get node {} -o jsonpath='{{.status.addresses[0].address}} {{.metadata.annotations.k3s\\.io/internal-ip}}'",
                agent.name()
            );
            server.wait_until_succeeds(&format!("test \"$({addresses})\" = '{0} {0}'", agent.address()), PATIENCE);
        }
    });
    step("pods run on both", || {
        server.apply(PODS);
        server.wait_until_succeeds("k3s kubectl rollout status daemonset/web --timeout=20s", PATIENCE);
    });
    step("pods find the keys of service accounts where the API says", || {
        let told = server.kubectl("get --raw /.well-known/openid-configuration");
        let uri = format!("https://{}:6443/openid/v1/jwks", server.address());
        assert!(told.contains(&format!("\"jwks_uri\":\"{uri}\"")), "{told}");
        let token = server.kubectl("create token default");
        let keys = agents[0].succeed(&format!(
            "nsenter -t $(pgrep -ox httpd) -n curl -sSf --cacert /var/lib/rancher/k3s/agent/server-ca.crt -H 'Authorization: Bearer {}' {uri}",
            token.trim()
        ));
        assert!(keys.contains("\"keys\":[{"), "{keys}");
    });
    step("a kubelet with a port of its own is known by it", || {
        agents[1].wait_for_log("kubelet on another port");
    });
    step("exec, logs and port-forward go through the tunnel: nothing else comes in", || {
        for agent in &agents {
            let name = agent.name();
            server.fail(&format!("curl -sk --max-time 3 https://{0}:10250/ https://{0}:10350/", agent.address()));
            let pod = server.kubectl(&format!(
                "get pod -l app=web --field-selector=spec.nodeName={name} -o jsonpath={{.items[0].metadata.name}}"
            ));
            let echoed = server.succeed(&format!("echo hello | k3s kubectl exec -i {pod} -- cat"));
            assert_eq!(echoed, "hello\n");
            assert_eq!(server.kubectl(&format!("logs {pod}")).trim(), format!("on {name}"));
            let forward = server.background(&format!("exec k3s kubectl port-forward pod/{pod} 9090:8080"));
            server.wait_for_open_port(9090, PATIENCE);
            assert_eq!(server.succeed("curl -sSf --max-time 10 http://127.0.0.1:9090/").trim(), name);
            server.succeed(&format!(
                "kill {}; while ss -Hltn 'sport = :9090' | grep -q .; do sleep 0.1; done",
                forward.pid
            ));
            let stats = server.kubectl(&format!("get --raw /api/v1/nodes/{name}/proxy/stats/summary"));
            assert!(stats.contains("\"nodeName\""), "{stats}");
        }
    });
    step("an agent shows what its load balancer counts to those whom the API lets see it", || {
        server.kubectl("create clusterrole read-metrics --verb=get --non-resource-url=/metrics");
        server.kubectl(
            "create clusterrolebinding read-metrics --clusterrole=read-metrics --serviceaccount=default:default",
        );
        let token = server.kubectl("create token default");
        let page = "curl -s --cacert /var/lib/rancher/k3s/agent/server-ca.crt https://127.0.0.1:6443/metrics";
        let in_use = format!("name=\"k3s-agent-load-balancer\",server=\"{}:6443\"}} 7", server.address());
        agents[0].wait_until_succeeds(
            &format!("{page} -H 'Authorization: Bearer {}' | grep -F '{in_use}'", token.trim()),
            PATIENCE,
        );
        let refusal = agents[0].succeed(page);
        assert!(refusal.contains("\"reason\":\"Unauthorized\""), "{refusal}");
    });
    step("an agent ends when asked to, and leaves its pods running", || {
        agents[0].stop_k3s();
        agents[0].fail("pgrep -x kubelet || pgrep -x containerd || pgrep -x kube-proxy");
        agents[0].succeed("pgrep -x httpd");
    });
}
