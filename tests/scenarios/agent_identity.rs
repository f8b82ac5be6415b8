//! Whose name a node's is: the first machine that joined by it, until somebody says otherwise.

use cluster_tests::{Network, Node, PATIENCE, step};

#[test]
fn a_name_belongs_to_the_machine_that_joined_by_it() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let [first, second] = ["first", "second"].map(|name| Node::boot(&network, name));
    let refusal = "refuses the node name twin";
    step("a machine joins as twin", || {
        server.start_k3s("");
        first.start_k3s_agent(&server, "--node-name=twin");
        server.wait_until_node_ready("twin");
        assert_eq!(first.succeed("stat -c %a /etc/rancher/node/password").trim(), "600");
        let secret = "-n kube-system get secret twin.node-password.k3s -o jsonpath='{.immutable} {.type} {.data.hash}'";
        let told = server.kubectl(secret);
        assert!(told.starts_with("true k3s.cattle.io/node-password "), "{told}");
    });
    step("another machine of that name is refused, and told what to do", || {
        second.start_k3s_agent(&server, "--node-name=twin");
        let status = second.wait_for_status(refusal);
        assert!(status.contains("k3s node forget twin") && status.contains("--with-node-id"), "{status}");
        second.wait_for_log("k3s node forget twin");
        second.fail("pgrep -x kubelet");
    });
    step("it joins by a name of its own", || {
        second.stop_k3s();
        second.restart_k3s_agent("--node-name=twin --with-node-id");
        let id = second.wait_until_succeeds("cat /etc/rancher/node/id", PATIENCE);
        server.wait_until_node_ready(&format!("twin-{}", id.trim()));
    });
    step("a machine that has lost its password is refused, whatever else it has kept", || {
        first.stop_k3s();
        first.succeed("rm -r /etc/rancher/node");
        first.restart_k3s_agent("--node-name=twin");
        first.wait_for_status(refusal);
        first.fail("pgrep -x kubelet");
    });
    step("the server forgets the password, and the machine is in again", || {
        server.succeed("k3s node forget twin");
        first.wait_for_components(|running| running.contains_key("kubelet"));
        first.wait_until_succeeds(&format!("! k3s status | grep -q '{refusal}'"), PATIENCE);
        server.wait_until_node_ready("twin");
    });
    step("a token of another cluster ends the start, with both hashes", || {
        let other = "0".repeat(64);
        second.stop_k3s();
        let ended = second.execute(&format!(
            "rm -r /var/lib/rancher/k3s/agent && exec timeout 60 k3s agent --token=K10{other}::node:wrong"
        ));
        assert_eq!(ended.code, 78, "{ended}");
        assert!(ended.stderr.contains(&other), "{ended}");
    });
}
