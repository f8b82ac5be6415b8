//! The harness itself, shown with small programs: nodes are machines of their own, and leave nothing behind.

use std::{fs, process::Command, time::Duration};

use cluster_tests::{Network, Node};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn nodes_share_a_wire_and_nothing_else() {
    let network = Network::new();
    let (one, two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));

    assert_eq!(one.succeed("hostname").trim(), "one");
    assert_eq!(one.succeed("cat /proc/1/comm").trim(), "node-init");
    assert_eq!(one.fail("echo oops; exit 3").trim(), "oops");
    assert_eq!(one.execute("kill -9 $$").code, 128 + 9);

    // Files, processes, IPC and cgroups are the node's own.
    one.succeed("touch /tmp/a /run/a /var/a /etc/a /root/a /etc/rancher/a && mkdir /opt/a");
    two.fail("ls -d /tmp/a || ls -d /run/a || ls -d /var/a || ls -d /etc/a || ls -d /root/a || ls -d /etc/rancher/a || ls -d /opt/a");
    one.fail("touch /usr/a");
    let job = one.background("exec sleep 1000");
    one.succeed(&format!("test $(ps -o ppid= -p {}) = 1", job.pid));
    two.fail("pgrep -x sleep");
    one.succeed("! grep -v ':/\\(init\\)\\?$' /proc/self/cgroup");
    one.succeed("for root in $(awk '$9 == \"cgroup\" || $9 == \"cgroup2\" {print $5}' /proc/self/mountinfo); do mkdir $root/pod; done");
    two.fail("ls -d /sys/fs/cgroup/*/pod");

    // The wire, and what can be reached by it.
    one.succeed(&format!("busybox ping -c1 -W2 {}", two.address()));
    let seen = one.succeed(&format!("curl -sS http://{}/", Network::OUTSIDE));
    assert_eq!(seen.trim(), one.address().to_string());
    one.block(&two);
    one.fail(&format!("busybox ping -c1 -W1 {}", two.address()));
    network.unblock();
    one.succeed(&format!("busybox ping -c1 -W2 {}", two.address()));
    two.background("busybox nc -l -p 7777");
    two.wait_for_open_port(7777, SOON);
    two.wire().run(|| std::net::TcpStream::connect(("127.0.0.1", 7777)).expect("nc listens in the node"));
}

#[test]
fn a_crash_keeps_the_disk_and_nothing_else() {
    let network = Network::new();
    let mut node = Node::boot(&network, "crashed");
    node.succeed("echo kept | tee /var/lib/state /etc/state > /run/state");
    node.background("exec sleep 1000");
    node.crash();
    node.start();
    assert_eq!(node.succeed("cat /var/lib/state /etc/state"), "kept\nkept\n");
    node.fail("test -e /run/state");
    node.fail("pgrep -x sleep");
    node.wait_until_succeeds(&format!("curl -sS http://{}/", Network::OUTSIDE), SOON);
}

#[test]
fn a_shutdown_lets_k3s_end_what_it_began() {
    let network = Network::new();
    let mut node = Node::boot(&network, "shutdown");
    node.write("/root/k3s", "#!/bin/sh\ntrap 'sleep 0.5; touch /var/ended; exit' TERM\nwhile :; do sleep 0.1; done\n");
    node.background("chmod +x /root/k3s && exec /root/k3s");
    node.wait_until_succeeds("pgrep -x k3s", SOON);
    node.shutdown();
    node.start();
    node.succeed("test -e /var/ended");
}

#[test]
fn orphans_are_reaped() {
    let network = Network::new();
    let node = Node::boot(&network, "reaper");
    node.succeed("(sh -c 'sleep 0.1' &) ; (sh -c 'sleep 0.1; exit 3' &)");
    node.wait_until_succeeds("! pgrep -x sleep && ! ps -o stat= -A | grep -q Z", SOON);
}

#[test]
fn runs_leave_nothing_behind() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("Linux has it");
    let before = mounts();
    let network = Network::new();
    let node = Node::boot(&network, "gone");
    // Something that a pod would leave: a cgroup deep inside, with a process.
    let job = node.background("exec sleep 1000");
    node.succeed(&format!(
        "root=$(awk '$9 ~ /^cgroup/ {{print $5; exit}}' /proc/self/mountinfo)
         mkdir -p $root/pods/pod && echo {} > $root/pods/pod/cgroup.procs",
        job.pid
    ));
    let init = node.path("/");
    assert!(init.exists());
    drop((node, network));
    assert!(!init.exists(), "process 1 has gone");
    assert_eq!(mounts(), before);
    let cgroups = Command::new("find").args(["/sys/fs/cgroup", "-name", "*-gone"]).output().expect("find is there");
    let own = format!("/{}-", std::process::id());
    assert!(!String::from_utf8_lossy(&cgroups.stdout).contains(&own), "no cgroup is left");
}
