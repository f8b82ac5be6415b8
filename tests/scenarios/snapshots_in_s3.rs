//! Snapshots in a bucket of S3: taken, counted, listed and deleted there, and a machine that has nothing else made of one.
//!
//! S3 is gofakes3, where `GOFAKES3` names it (`cargo xtask components gofakes3` builds it). It looks at no signature and has no TLS: those
//! have their tests in `src/s3`.

use std::{env, fs};

use cluster_tests::{Job, Network, Node, PATIENCE, step};

use crate::refusal::{CONFIGURATION, NO_INPUT, UNAVAILABLE, refused};

const SNAPSHOTS: &str = "/var/lib/rancher/k3s/server/db/snapshots";
const KEY: &str = "hunter2-of-the-bucket";

/// Starts S3 on what an earlier start has left.
fn start_s3(s3: &Node) -> Job {
    let job = s3.background("exec /tmp/gofakes3 -host 0.0.0.0:9000 -backend bolt -bolt.db /tmp/s3.db -quiet");
    s3.wait_for_open_port(9000, PATIENCE);
    job
}

/// What the folder of the bucket holds.
fn in_bucket(s3: &Node) -> String {
    s3.succeed("curl -sf 'http://127.0.0.1:9000/backups?list-type=2&prefix=site-7/' | grep -o '<Key>[^<]*' | cut -c6-")
}

#[test]
fn snapshots_go_to_a_bucket_and_come_back() {
    let Ok(program) = env::var("GOFAKES3") else { return println!("GOFAKES3 names no server of S3.") };
    let network = Network::new();
    let (s3, server, fresh) =
        (Node::boot(&network, "s3"), Node::boot(&network, "server"), Node::boot(&network, "fresh"));
    let endpoint = format!("{}:9000", s3.address());
    let settings = [("endpoint", endpoint.as_str()), ("insecure", "true"), ("bucket", "backups"), ("folder", "site-7")];
    fs::copy(program, s3.path("/tmp/gofakes3")).expect("GOFAKES3 names a program");
    let running = start_s3(&s3);

    step("without a bucket, snapshots are on the disk, and one sentence says why no more", || {
        let settings: String = settings.iter().map(|(name, value)| format!("etcd-s3-{name}: {value}\n")).collect();
        server.write(
            "/etc/rancher/k3s/config.yaml",
            &format!(
                "token: correct-horse\nsnapshot-schedule-cron: '*/3 * * * * *'\nsnapshot-retention: 3\n\
                 etcd-s3: true\netcd-s3-retention: 2\netcd-s3-access-key: k3s\netcd-s3-secret-key: {KEY}\n{settings}"
            ),
        );
        server.start_k3s("");
        server.wait_until_ready();
        let failed = server.execute("k3s etcd-snapshot save --name early");
        refused(&failed, CONFIGURATION, "there is no bucket backups at");
        assert!(failed.stdout.starts_with(&format!("Saved {SNAPSHOTS}/early-server-")), "{failed}");
        server.wait_for_log("S3 does not hold what it should");
    });
    step("in a bucket, the newest two of the schedule stay", || {
        s3.succeed("curl -sf -X PUT http://127.0.0.1:9000/backups");
        let saved = "test $(grep -c 'Saved a snapshot in S3' /var/log/k3s.log) -ge 4";
        server.wait_until_succeeds(saved, PATIENCE);
        server.wait_until_succeeds("grep -q 'Deleted a snapshot in S3' /var/log/k3s.log", PATIENCE);
        let kept = in_bucket(&s3).lines().filter(|key| key.starts_with("site-7/snapshot-server-")).count();
        assert!((2..=3).contains(&kept), "{}", in_bucket(&s3));
    });
    let before = step("one is saved by hand, listed in both places, and another deleted in both", || {
        server.kubectl("create configmap kept --from-literal=value=saved");
        let saved = server.succeed("k3s etcd-snapshot save --name before");
        let name = saved.lines().last().and_then(|line| line.strip_prefix("Saved s3://backups/site-7/"));
        let name = name.unwrap_or_else(|| panic!("{saved}")).trim_end_matches('.').to_owned();
        let listed = server.succeed("k3s etcd-snapshot ls");
        assert!(listed.contains(&format!("file://{SNAPSHOTS}/{name}")), "{listed}");
        assert!(listed.contains(&format!("s3://backups/site-7/{name}")), "{listed}");
        server.succeed("k3s etcd-snapshot save --name other");
        let other = server.succeed(&format!("cd {SNAPSHOTS} && ls other-*"));
        server.succeed(&format!("k3s etcd-snapshot delete {}", other.trim()));
        assert!(!in_bucket(&s3).contains("other-") && in_bucket(&s3).contains(&name));
        refused(
            &server.execute(&format!("k3s etcd-snapshot delete {}", other.trim())),
            NO_INPUT,
            "there is no snapshot s3://backups/site-7/other-",
        );
        name
    });
    step("the settings may be in a Secret", || {
        server.succeed(&format!(
            "k3s kubectl create secret generic bucket -n kube-system --from-literal=etcd-s3-insecure=true \
             --from-literal=etcd-s3-endpoint={endpoint} --from-literal=etcd-s3-bucket=backups --from-literal=etcd-s3-folder=of-secret \
             --from-literal=etcd-s3-access-key=k3s --from-literal=etcd-s3-secret-key={KEY}"
        ));
        server.write("/tmp/with-secret.yaml", "token: correct-horse\netcd-s3: true\netcd-s3-config-secret: bucket\n");
        let saved = server.succeed("k3s etcd-snapshot save --config /tmp/with-secret.yaml --name from-secret");
        assert!(saved.contains("Saved s3://backups/of-secret/from-secret-server-"), "{saved}");
    });
    step("the key is on no command line, in no log and in no status", || {
        for command in [
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
            "cat /var/log/k3s.log",
            "k3s status -o json",
            "k3s kubectl get nodes -o yaml",
        ] {
            assert!(!server.succeed(command).contains(KEY), "`{command}` tells the key");
        }
    });
    step("a machine that has nothing but the token and the bucket becomes the server", || {
        let flags: String = settings.iter().map(|(name, value)| format!(" --etcd-s3-{name}={value}")).collect();
        fresh.write("/etc/rancher/k3s/config.yaml", "token: correct-horse\n");
        fresh.succeed(&format!(
            "AWS_ACCESS_KEY_ID=k3s AWS_SECRET_ACCESS_KEY={KEY} \
             k3s server --cluster-reset --cluster-reset-restore-path={before} --etcd-s3{flags}"
        ));
        fresh.start_k3s("");
        fresh.wait_until_node_ready("fresh");
        assert_eq!(fresh.kubectl("get configmap kept -o jsonpath={.data.value}"), "saved");
    });
    step("S3 goes away: the schedule goes on", || {
        s3.succeed(&format!("kill {0} && tail --pid={0} -f /dev/null", running.pid));
        let taken = server.succeed("grep -c 'Saved a snapshot\\.' /var/log/k3s.log");
        server.wait_until_succeeds(
            &format!("test $(grep -c 'Saved a snapshot\\.' /var/log/k3s.log) -gt {}", taken.trim()),
            PATIENCE,
        );
        refused(&server.execute("k3s etcd-snapshot ls"), UNAVAILABLE, "cannot be reached");
        assert!(server.execute("k3s etcd-snapshot ls").stdout.contains(&before));
        start_s3(&s3);
        assert!(server.succeed("k3s etcd-snapshot ls").contains(&format!("s3://backups/site-7/{before}")));
    });
}
