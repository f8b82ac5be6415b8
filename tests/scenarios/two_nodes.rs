//! Two servers side by side on one machine: two clusters that do not see each other.

use cluster_tests::{Network, Node, step};

#[test]
fn two_servers_do_not_see_each_other() {
    let network = Network::new();
    let (mut one, two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    step("both get Ready, at the same paths and ports", || {
        for node in [&one, &two] {
            node.give_demo_image();
            node.start_k3s("");
        }
        one.wait_until_ready();
        two.wait_until_ready();
    });
    step("each knows its own node and objects only", || {
        for node in [&one, &two] {
            node.kubectl(&format!("create configmap of-{}", node.name()));
        }
        for (node, other) in [(&one, &two), (&two, &one)] {
            assert_eq!(node.kubectl("get nodes -o name").trim(), format!("node/{}", node.name()));
            node.fail(&format!("k3s kubectl get configmap of-{}", other.name()));
        }
    });
    step("the credentials of one are none to the other", || {
        let refused = one.fail(&format!(
            "k3s kubectl --server=https://{}:6443 --insecure-skip-tls-verify --certificate-authority= get nodes",
            two.address()
        ));
        assert!(refused.contains("Unauthorized") || refused.contains("must be logged in"), "{refused}");
    });
    step("each runs and logs its own pods", || {
        for node in [&one, &two] {
            let name = node.name();
            node.kubectl(&format!(
                "run pod-of-{name} --image=docker.io/k3s-rs/demo:0.1.0 --restart=Never -- sh -c 'echo I am {name}; exec sleep 100000'"
            ));
        }
        for (node, other) in [(&one, &two), (&two, &one)] {
            let name = node.name();
            node.kubectl(&format!("wait --for=condition=Ready pod/pod-of-{name} --timeout=120s"));
            assert_eq!(node.kubectl(&format!("logs pod-of-{name}")).trim(), format!("I am {name}"));
            node.succeed(&format!("ls -d /var/log/pods/*pod-of-{name}*"));
            node.fail(&format!("ls -d /var/log/pods/*pod-of-{}*", other.name()));
            assert_eq!(node.succeed("pgrep -xc kubelet").trim(), "1");
        }
    });
    step("the end of one is nothing to the other", || {
        let before = two.components();
        one.crash();
        assert_eq!(two.components(), before);
        two.kubectl("exec pod-of-two -- true");
    });
}
