//! `k3s stop`: pods go on; with `--all` nothing of the node is left on the host but its state on disk, and the next start runs it again.

use cluster_tests::{Network, Node, PATIENCE, step};

/// One that ends politely and tells so, one that takes a port of the host, and one on the host's network.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "trap 'echo ended >> /diary/polite; exit 0' TERM; echo began >> /diary/polite; while :; do sleep 1; done"]
    volumeMounts: [{name: diary, mountPath: /diary}, {name: scratch, mountPath: /scratch}]
  volumes:
  - name: diary
    hostPath: {path: /var/diary, type: DirectoryOrCreate}
  - name: scratch
    emptyDir: {medium: Memory}
---
apiVersion: v1
kind: Pod
metadata: {name: port}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: docker.io/k3s-rs/demo:0.1.0
    ports: [{containerPort: 8080, hostPort: 8088}]
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  hostPID: true
  containers:
  - name: main
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "sleep 100000 & sleep 100001"]
"#;

/// What a node has of each kind of thing that k3s makes.
const COUNTS: [(&str, &str); 6] = [
    ("processes", "ps -eo args= | grep -e k3s -e containerd -e kube -e /pause -e 'sleep 10000' | grep -v grep || true"),
    ("mounts", "grep -v ' /opt/' /proc/self/mountinfo | cut -d' ' -f5 | sort"),
    ("network namespaces", "ls /run/netns 2>/dev/null || true"),
    ("devices", "ip -o link | cut -d' ' -f2 | cut -d@ -f1 | sort; ip route; ip -6 route"),
    (
        "rules",
        "nft list tables | grep -vE ' (filter|nat|mangle|raw|security)$'; { iptables-save; ip6tables-save; } 2>/dev/null | grep '^-A'; true",
    ),
    ("cgroups", "find /sys/fs/cgroup -type d | grep -e kubepods -e k3s-shims -e cri-containerd || true"),
];

#[test]
fn nothing_is_left_of_a_node_that_stops_with_its_pods() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    server.give_demo_image();
    let before = counts(&server);

    let k3s = step("pods run", || {
        let k3s = server.start_k3s("");
        server.wait_until_ready();
        server.apply(PODS);
        server.kubectl("wait --for=condition=Ready pod --all --timeout=120s");
        k3s
    });
    let running = counts(&server);
    step("a stop leaves them", || {
        assert!(running.iter().zip(&before).all(|(now, before)| now.1.len() > before.1.len()), "{running:#?}");
        let refused = server.fail("setpriv --reuid=65534 --clear-groups k3s stop 2>&1");
        assert!(refused.contains("run this as root"), "{refused}");
        let told = server.succeed("k3s stop");
        assert_eq!(told.trim(), "Stopped k3s. Pods go on running.");
        assert_eq!(server.succeed("cat /var/diary/polite"), "began\n");
        server.wait_until_succeeds("wget -T 5 -qO- http://127.0.0.1:8088/ || ip netns list | grep -c cni-", PATIENCE);
        assert_eq!(server.succeed("k3s stop").trim(), "k3s does not run.");
        assert!(!server.path(format!("/proc/{}", k3s.pid)).exists());
    });
    step("a stop with all, while k3s does not run, kills them", || {
        let told = server.succeed("k3s stop --all");
        assert!(told.starts_with("Stopped k3s and its pods."), "{told}");
        assert_eq!(counts(&server), before);
        assert_eq!(server.succeed("cat /var/diary/polite"), "began\n", "nobody could ask it to end");
    });
    step("the next start runs them again", || {
        server.start_k3s("");
        server.wait_until_ready();
        server.wait_until_succeeds("test $(wc -l < /var/diary/polite) = 2", PATIENCE);
        server.kubectl("wait --for=condition=Ready pod --all --timeout=120s");
    });
    step("a stop with all, while k3s runs, ends them by their signal", || {
        let told = server.succeed("k3s stop --all");
        assert!(told.starts_with("Stopped k3s and its pods."), "{told}");
        assert_eq!(server.succeed("cat /var/diary/polite"), "began\nbegan\nended\n");
        assert_eq!(counts(&server), before);
        server.succeed("k3s stop --all");
    });
    step("what is on disk is there", || {
        server.start_k3s("");
        server.wait_until_ready();
        server.kubectl("get pod polite port host");
        server.stop_k3s();
    });
}

#[test]
fn a_stop_does_not_wait_for_a_start() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let k3s = server.start_k3s("");
    // It will never be ready.
    let running = server.wait_for_components(|running| running.contains_key("kube-apiserver"));
    server.succeed(&format!("kill -STOP {}", running["kube-apiserver"].pid));
    // It has its grace period, and no more.
    server.succeed("timeout 60 k3s stop");
    assert!(!server.path(format!("/proc/{}", k3s.pid)).exists());
}

fn counts(node: &Node) -> Vec<(&'static str, String)> {
    COUNTS.iter().map(|(what, command)| (*what, node.succeed(command))).collect()
}
