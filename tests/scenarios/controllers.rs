//! Controllers of our own processes: each resource is watched once, and what fails fails alone.

use std::collections::BTreeMap;

use cluster_tests::{Network, Node, PATIENCE, step};
use serde_json::Value;

/// Tells of every watch that begins or ends, and nothing else.
const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, Panic]
rules:
- level: Metadata
  verbs: [watch]
- level: None
";

#[test]
fn each_resource_is_watched_once_by_each_process() {
    let network = Network::new();
    let [server, agent] = ["server", "agent"].map(|name| Node::boot(&network, name));
    step("a server with a node, and an agent", || {
        server.write("/etc/audit.yaml", POLICY);
        let flags =
            "--kube-apiserver-arg=audit-policy-file=/etc/audit.yaml --kube-apiserver-arg=audit-log-path=/tmp/audit.log";
        server.start_k3s(flags);
        agent.start_k3s_agent(&server, "");
        server.wait_until_ready();
        server.wait_until_node_ready(agent.name());
        server.wait_for_status("All components are ready");
        agent.wait_for_status("All components are ready");
    });
    step("what our processes watch", || {
        let log = server.succeed("cat /tmp/audit.log");
        // Those that stand: of a resource that was defined just now kube-apiserver ends the first one at once, with 410.
        let mut standing = BTreeMap::new();
        for event in log.lines().map(|line| serde_json::from_str::<Value>(line).expect("an event a line")) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let id = text(&event["auditID"]);
            if event["stage"] == "ResponseComplete" {
                standing.remove(&id);
                continue;
            }
            // Upstream components all say who they are.
            if text(&event["userAgent"]).is_empty() && event["responseStatus"]["code"] == 200 {
                standing.insert(id, (text(&event["user"]["username"]), text(&event["objectRef"]["resource"])));
            }
        }
        let mut watches: BTreeMap<(String, String), usize> = BTreeMap::new();
        for watch in standing.into_values() {
            *watches.entry(watch).or_default() += 1;
        }
        for ((user, resource), count) in &watches {
            println!("  {count} of {resource} as {user}");
        }
        assert!(watches.len() >= 4, "{watches:?}");
        let twice: Vec<_> = watches.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{twice:?}");
    });
    step("where the API is reached is published again when somebody deletes it", || {
        for object in ["endpointslice", "endpoints"] {
            server.kubectl(&format!("delete {object} kubernetes"));
            server.wait_until_succeeds(&format!("k3s kubectl get {object} kubernetes"), PATIENCE);
        }
    });
}

/// In builds for tests alone there are faults to inject.
#[test]
#[cfg(debug_assertions)]
fn what_fails_in_a_servers_own_process_fails_alone() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    server.give_demo_image();
    step("a server with faults gets Ready", || {
        server.start_k3s_with("K3S_TEST_FAULTS=1 K3S_TEST_PANICS=status,certificates,node-hosts", "");
        server.wait_until_ready();
        server.wait_for_deployment("kube-system", "coredns");
    });
    if server.execute("k3s status | grep -q fault-panic").code != 0 {
        println!("  the tree holds a release: no faults to inject");
        return;
    }
    step("the status names each of them", || {
        server.wait_for_status("fault-object: Node server: the API refuses a change");
        let status = server.status();
        let task = |name: &str| {
            let tasks = status["tasks"].as_array().expect("there are tasks");
            tasks.iter().find(|task| task["name"] == name).unwrap_or_else(|| panic!("{name} is not there")).clone()
        };
        assert_eq!(task("fault-panic")["last_failure"]["why"], "it panicked: as the scenario asks");
        assert_eq!(task("fault-error")["last_failure"]["why"], "as the scenario asks");
        for name in ["status", "certificates", "node-hosts"] {
            assert_eq!((&task(name)["state"], &task(name)["restarts"]), (&"running".into(), &1.into()), "{name}");
        }
        for name in ["api-endpoints", "nodes", "node-passwords", "egress"] {
            assert_eq!((&task(name)["state"], &task(name)["restarts"]), (&"running".into(), &0.into()), "{name}");
        }
        println!("{}", server.succeed("k3s status"));
    });
    step("the node stays Ready, and pods run", || {
        server.wait_until_ready();
        server.kubectl("run demo --image=docker.io/k3s-rs/demo:0.1.0 -- sleep 1000");
        server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/demo --timeout=20s", PATIENCE);
    });
}
