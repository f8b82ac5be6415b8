//! An agent behind a fixed registration address, and two servers of which one dies; then the address goes, too.

use std::time::{Duration, Instant};

use cluster_tests::{Network, Node, PATIENCE, step};

/// What kubelet does, by its own credentials.
const CALL: &str = "k3s kubectl --kubeconfig=/var/lib/rancher/k3s/agent/kubelet.kubeconfig --request-timeout=2s get node agent -o name";

/// The server that kubelet's connections lead to.
fn used<'a>(agent: &Node, servers: [&'a Node; 2]) -> &'a Node {
    let connections = |server: &Node| {
        let listed = agent.succeed(&format!("ss -Htn state established dst {}:6443 | wc -l", server.address()));
        listed.trim().parse::<u32>().expect("wc counts")
    };
    let [one, two] = servers;
    // Each has a tunnel; one has more.
    if connections(one) > connections(two) { one } else { two }
}

#[test]
fn an_agent_goes_to_the_server_that_lives() {
    let network = Network::new();
    let store = Node::boot(&network, "store");
    let (mut one, mut two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    let mut fixed = Node::boot(&network, "fixed");
    let agent = Node::boot(&network, "agent");
    let flags = format!("--token=s3cret --disable-agent --datastore-endpoint=http://{}:2379", store.address());
    step("two servers on one datastore, and an agent that knows neither", || {
        store.background(
            "exec k3s datastore serve --endpoint=sqlite:///var/lib/store.db --listen=http://0.0.0.0:2379 --insecure-listen",
        );
        for server in [&one, &two] {
            server.start_k3s(&flags);
        }
        fixed.lead_to(&[&one, &two]);
        agent.write(
            "/etc/rancher/k3s/config.yaml",
            &format!("server: https://{}:6443\ntoken: s3cret\n", fixed.address()),
        );
        agent.restart_k3s_agent("");
        one.wait_until_node_ready("agent");
    });
    step("it learns where they are", || {
        let state = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json";
        for server in [&one, &two] {
            agent.wait_until_succeeds(&format!("grep -q '\"{}:6443\"' {state}", server.address()), PATIENCE);
            agent.wait_until_succeeds(
                &format!("ss -Htn state established dst {}:6443 | grep -q .", server.address()),
                PATIENCE,
            );
        }
    });
    step("the server that it uses dies: its calls go to the other", || {
        agent.succeed(CALL);
        let (dies, lives) =
            if used(&agent, [&one, &two]).name() == "one" { (&mut one, &two) } else { (&mut two, &one) };
        // As when power is cut: no kernel closes its connections.
        agent.block(dies);
        dies.crash();
        let died = Instant::now();
        agent.wait_until_succeeds(CALL, PATIENCE);
        let missed = died.elapsed();
        println!("  calls succeed again after {:.1} s", missed.as_secs_f64());
        assert!(missed < Duration::from_secs(60));
        // Since then a node has been silent for longer than it may before it counts as not ready: 50 s, looked at every 5 s.
        lives.succeed(&format!("sleep {}", Duration::from_secs(56).saturating_sub(died.elapsed()).as_secs_f64()));
        let ready = "get node agent -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].status}'";
        assert_eq!(lives.kubectl(ready), "True");
        let since = "get events -A --field-selector=involvedObject.name=agent,reason=NodeNotReady -o name";
        assert_eq!(lives.kubectl(since), "");
    });
    step("the registration address goes for good, and the agent starts again", || {
        fixed.crash();
        agent.stop_k3s();
        agent.succeed(": > /var/log/k3s.log");
        agent.restart_k3s_agent("");
        agent.wait_for_log("Joined the cluster.");
        agent.wait_until_succeeds(CALL, PATIENCE);
        agent.wait_for_log("The node is ready.");
    });
}
