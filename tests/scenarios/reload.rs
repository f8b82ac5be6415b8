//! A reload: what of a changed configuration counts at once, which programs that touches, and what is refused or has to wait.

use std::collections::BTreeMap;

use cluster_tests::{Network, Node, PATIENCE, Process, step};

const CONFIG: &str = "/etc/rancher/k3s/config.yaml";

type Components = BTreeMap<String, Process>;

#[test]
fn a_reload_changes_what_can_change_under_pods_and_nothing_else() {
    let network = Network::new();
    let (server, agent) = (Node::boot(&network, "server"), Node::boot(&network, "agent"));
    server.write(CONFIG, "node-label: [site=one, rack=7]\n");
    let k3s = step("a server and an agent get Ready", || {
        let k3s = server.start_k3s("");
        server.wait_until_ready();
        agent.start_k3s_agent(&server, "");
        server.wait_until_node_ready("agent");
        k3s
    });
    let reload = |config: &str| {
        server.write(CONFIG, config);
        server.succeed(&format!("kill -HUP {}", k3s.pid));
    };
    let before = all_ready(&server);

    step("labels and taints are set through the API, and no program is touched", || {
        reload("node-label: [site=two]\nnode-taint: ['dedicated=edge:PreferNoSchedule']\n");
        has_label(&server, "server", "site", "two");
        has_label(&server, "server", "rack", "");
        server.wait_until_succeeds(&taints("server", "dedicated=edge:PreferNoSchedule"), PATIENCE);
        assert_eq!(server.components(), before);
    });

    let after_kubelet = step("kubelet's arguments restart kubelet, and nothing else", || {
        reload("node-label: [site=two]\nkubelet-arg: [max-pods=33]\n");
        server.wait_until_succeeds(
            "k3s kubectl get node server -o jsonpath={.status.capacity.pods} | grep -qx 33",
            PATIENCE,
        );
        server.wait_until_succeeds(&format!("! {}", taints("server", "dedicated=edge:PreferNoSchedule")), PATIENCE);
        let now = all_ready(&server);
        assert_eq!(differing(&before, &now), ["kubelet"]);
        now
    });

    let after_scheduler = step("so do the control plane's, program by program", || {
        reload("node-label: [site=two]\nkubelet-arg: [max-pods=33]\nkube-scheduler-arg: [v=1]\n");
        let scheduler = after_kubelet["kube-scheduler"];
        server.wait_for_components(|now| now.get("kube-scheduler").is_some_and(|now| *now != scheduler));
        let now = all_ready(&server);
        assert_eq!(differing(&after_kubelet, &now), ["kube-scheduler"]);
        now
    });

    step("a bad file is refused with its sentence, and everything stays as it is", || {
        reload("node-label: [site=three]\nkubelet-args: [max-pods=44]\n");
        let status = server.wait_for_status("The last reload was refused");
        assert!(status.contains("kubelet-args") && status.contains("kubelet-arg"), "{status}");
        reload("node-label: [site]\n");
        server.wait_for_status("is not a label");
        reload("kubelet-arg: [config=/no/such/file]\n");
        server.wait_for_status("/no/such/file");
        has_label(&server, "server", "site", "two");
        assert_eq!(server.components(), after_scheduler);
    });

    step("what has to wait for the next start is named until it is taken back", || {
        let same = "node-label: [site=two]\nkubelet-arg: [max-pods=33]\nkube-scheduler-arg: [v=1]\n";
        reload(&format!("{same}tls-san: [example.com]\ncluster-domain: other.local\n"));
        let status = server.wait_for_status("counts only when k3s starts again");
        assert!(status.contains("tls-san") && status.contains("cluster-domain"), "{status}");
        reload(same);
        server.wait_until_succeeds("! k3s status | grep -q 'counts only when'", PATIENCE);
        assert_eq!(server.components(), after_scheduler);
    });

    step("an agent does the same with its own rights", || {
        let before = all_ready(&agent);
        let config = agent.succeed(&format!("cat {CONFIG}"));
        agent.write(CONFIG, &format!("{config}\nnode-label: [site=far]\nnode-taint: ['far=:NoSchedule']\n"));
        agent.succeed("kill -HUP $(pgrep -x k3s)");
        has_label(&server, "agent", "site", "far");
        agent.wait_for_status("What has changed of node-taint counts when the node registers");
        assert_eq!(agent.components(), before);
        agent.write(CONFIG, &format!("{config}\nkube-proxy-arg: [v=1]\n"));
        agent.succeed("kill -HUP $(pgrep -x k3s)");
        has_label(&server, "agent", "site", "");
        let proxy = before["kube-proxy"];
        agent.wait_for_components(|now| now.get("kube-proxy").is_some_and(|now| *now != proxy));
        assert_eq!(differing(&before, &all_ready(&agent)), ["kube-proxy"]);
    });
}

/// The programs once each has answered.
#[track_caller]
fn all_ready(node: &Node) -> Components {
    node.wait_until_succeeds("k3s status -o json | grep -qE '\"health\": *\"ready\"'", PATIENCE);
    node.components()
}

fn differing<'a>(before: &'a Components, now: &Components) -> Vec<&'a str> {
    assert!(before.keys().eq(now.keys()), "{before:?}, {now:?}");
    before.iter().filter(|(name, process)| now[*name] != **process).map(|(name, _)| name.as_str()).collect()
}

#[track_caller]
fn has_label(server: &Node, node: &str, key: &str, value: &str) {
    server.wait_until_succeeds(
        &format!("test \"$(k3s kubectl get node {node} -o jsonpath='{{.metadata.labels.{key}}}')\" = '{value}'"),
        PATIENCE,
    );
}

/// A command that finds this taint on the node.
fn taints(node: &str, taint: &str) -> String {
    format!("k3s kubectl describe node {node} | grep -qF '{taint}'")
}
