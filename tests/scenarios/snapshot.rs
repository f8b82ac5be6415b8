//! Snapshots: taken while the cluster works, and everything as it was when one is put back.

use cluster_tests::{Job, Network, Node, PATIENCE, step};

use crate::refusal::{CONFIGURATION, DATA_ERROR, IN_USE, refused};

const SNAPSHOTS: &str = "/var/lib/rancher/k3s/server/db/snapshots";

#[test]
fn a_cluster_comes_back_as_it_was_saved() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let k3s = step("snapshots are taken on schedule, and the newest two stay", || {
        server.write(
            "/etc/rancher/k3s/config.yaml",
            "token: correct-horse\nsnapshot-schedule-cron: '*/3 * * * * *'\nsnapshot-retention: 2\n",
        );
        let k3s = server.start_k3s("");
        server.wait_until_ready();
        let taken = format!("test $(grep -c 'Saved a snapshot' /var/log/k3s.log) -ge 3 && ls {SNAPSHOTS} | wc -l");
        assert_eq!(server.wait_until_succeeds(&taken, PATIENCE).trim(), "2");
        k3s
    });
    let (before, authority) = step("one is saved while the cluster is written to", || {
        server.kubectl("create configmap kept --from-literal=value=saved");
        server.succeed("cp /etc/rancher/k3s/k3s.yaml /tmp/before.yaml");
        let load = server.background("i=0; while k3s kubectl create configmap load-$i; do i=$((i+1)); done");
        server.wait_until_succeeds("k3s kubectl get configmap load-3", PATIENCE);
        let saved = save(&server, "k3s snapshot save --name before");
        server.wait_until_succeeds("k3s kubectl get configmap load-6", PATIENCE);
        server.succeed(&format!("kill {}", load.pid));
        (saved, server.succeed("sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt"))
    });
    step("a restore is refused while the server runs", || {
        refused(&server.execute(&format!("k3s snapshot restore {before}")), IN_USE, "another k3s server runs");
    });
    step("the cluster changes, and its server stops", || {
        server.kubectl("delete configmap kept");
        server.kubectl("create configmap lost");
        stop(&server, &k3s);
        save(&server, "k3s etcd-snapshot save --name stopped --snapshot-compress");
    });
    step("another token, a damaged file and a foreign one are refused, and nothing changes", || {
        let sums = "cd /var/lib/rancher/k3s/server && find tls cred token db -type f ! -name '*-lock' | sort | xargs sha256sum";
        let untouched = server.succeed(sums);
        let other = server.execute(&format!("k3s snapshot restore --token other {before}"));
        refused(&other, CONFIGURATION, "encrypted with different token");
        server.succeed(&format!(
            "cp {SNAPSHOTS}/{before} /tmp/damaged && printf x | dd of=/tmp/damaged bs=1 seek=70000 conv=notrunc"
        ));
        refused(&server.execute("k3s snapshot restore /tmp/damaged"), DATA_ERROR, "/tmp/damaged is damaged");
        refused(&server.execute("k3s snapshot restore /etc/hosts"), DATA_ERROR, "/etc/hosts is not a snapshot");
        assert!(server.succeed(sums) == untouched, "a refused restore changed a file");
    });
    let k3s = step("the cluster comes back as it was", || {
        server.succeed(&format!("k3s snapshot restore {before}"));
        let k3s = server.start_k3s("");
        server.wait_until_ready();
        assert_eq!(server.kubectl("get configmap kept -o jsonpath={.data.value}"), "saved");
        server.fail("k3s kubectl get configmap lost");
        server.kubectl("get configmap load-3");
        k3s
    });
    step("its clients know it again, and no revision comes twice", || {
        server.succeed("KUBECONFIG=/tmp/before.yaml kubectl get nodes");
        assert_eq!(server.succeed("sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt"), authority);
        let revision = server.kubectl("create configmap new -o jsonpath={.metadata.resourceVersion}");
        assert!(revision.parse::<u64>().is_ok_and(|revision| revision > 1_000_000_000), "{revision}");
    });
    step("a machine that lost everything but a snapshot and the token becomes the server", || {
        stop(&server, &k3s);
        server.succeed(&format!(
            "mv {SNAPSHOTS}/stopped-* /tmp/ && rm -r /var/lib/rancher/k3s/server && \
             k3s server --cluster-reset --cluster-reset-restore-path=$(ls /tmp/stopped-*.zst)"
        ));
        server.start_k3s("");
        server.wait_until_ready();
        server.kubectl("get configmap lost");
        server.succeed("KUBECONFIG=/tmp/before.yaml kubectl get nodes");
        assert_eq!(server.succeed("sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt"), authority);
    });
}

/// Saves a snapshot and returns its name.
#[track_caller]
fn save(server: &Node, command: &str) -> String {
    let told = server.succeed(command);
    let path = told.strip_prefix("Saved ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    assert!(server.succeed("k3s snapshot ls").contains(&name), "{told}");
    name
}

#[track_caller]
fn stop(server: &Node, k3s: &Job) {
    server.succeed(&format!("kill -TERM {0} && tail --pid={0} -f /dev/null", k3s.pid));
}
