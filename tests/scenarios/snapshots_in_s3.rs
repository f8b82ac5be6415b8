//! Snapshots in a bucket of S3: taken, counted, listed and deleted there, and a machine that has nothing else made of one.
//!
//! S3 is gofakes3, where `GOFAKES3` names it (`cargo xtask components gofakes3` builds it). It looks at no signature and has no TLS: those
//! have their tests in `src/s3`.

use std::{env, fs, time::Instant};

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
        server.wait_for_log("S3 gets it with the next one");
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

/// What objects tell of: place, name of the file, and whether it can be restored, of those whose file's name begins with `prefix`.
fn told(server: &Node, prefix: &str) -> Vec<(String, String, bool)> {
    let columns = "-o jsonpath='{range .items[*]}{.metadata.labels.etcd\\.k3s\\.cattle\\.io/snapshot-storage-node} \
                   {.spec.snapshotName} {.status.readyToUse}{\"\\n\"}{end}'";
    let listed = server.kubectl(&format!("get etcdsnapshotfiles {columns}"));
    let row = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [place, name, ready] => (place.to_owned(), name.to_owned(), ready == "true"),
        _ => panic!("{line}"),
    };
    let mut rows: Vec<_> = listed.lines().map(row).filter(|(_, name, _)| name.starts_with(prefix)).collect();
    rows.sort();
    rows
}

/// Waits until objects tell of these files alone, of those whose name begins with `prefix`: place, and whether each can be restored.
fn wait_until_told(server: &Node, prefix: &str, expected: &[(&str, bool)]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = told(server, prefix);
        let found: Vec<_> = rows.iter().map(|(place, _, ready)| (place.as_str(), *ready)).collect();
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{rows:?} instead of {expected:?}");
        server.execute("sleep 0.5");
    }
}

#[test]
fn objects_tell_of_snapshots_of_etcd_and_of_what_is_in_the_bucket() {
    let Ok(program) = env::var("GOFAKES3") else { return println!("GOFAKES3 names no server of S3.") };
    let network = Network::new();
    let (s3, server, fresh) =
        (Node::boot(&network, "s3"), Node::boot(&network, "server"), Node::boot(&network, "fresh"));
    fs::copy(program, s3.path("/tmp/gofakes3")).expect("GOFAKES3 names a program");
    let running = start_s3(&s3);
    let config = |schedule: &str| {
        format!(
            "token: correct-horse\ndisable-agent: true\netcd-snapshot-schedule-cron: '{schedule}'\netcd-snapshot-retention: 4\n\
             etcd-snapshot-reconcile-interval: 2s\netcd-s3: true\netcd-s3-endpoint: {}:9000\netcd-s3-insecure: true\n\
             etcd-s3-bucket: backups\netcd-s3-folder: site-7\netcd-s3-access-key: k3s\netcd-s3-secret-key: {KEY}\n",
            s3.address()
        )
    };
    server.write("/etc/rancher/k3s/config.yaml", &config("0 0 1 1 *"));

    step("one that cannot go to the bucket is told of, with the reason", || {
        server.start_k3s("--cluster-init");
        server.wait_for_log("The Kubernetes API is served.");
        refused(&server.execute("k3s etcd-snapshot save --name early"), CONFIGURATION, "there is no bucket backups at");
        wait_until_told(&server, "early-", &[("s3", false), ("server", true)]);
        let listed = server.kubectl("get etcdsnapshotfiles -o yaml");
        assert!(listed.contains("there is no bucket backups at"), "{listed}");
        let events = "k3s kubectl get events -A | grep ETCDSnapshotFailed";
        server.wait_until_succeeds(events, PATIENCE);
    });
    let kept = step("one that can is told of in both places, with what is to be noted beside it", || {
        s3.succeed("curl -sf -X PUT http://127.0.0.1:9000/backups");
        server.kubectl("create configmap k3s-etcd-snapshot-extra-metadata -n kube-system --from-literal=site=seven");
        server.kubectl("create configmap kept --from-literal=value=saved");
        server.succeed("k3s etcd-snapshot save --name kept --snapshot-compress");
        wait_until_told(&server, "kept-", &[("s3", true), ("server", true)]);
        let rows = server.kubectl("get etcdsnapshotfiles");
        let name = &told(&server, "kept-")[0].1;
        for text in [format!("s3://backups/site-7/{name}"), format!("file://{SNAPSHOTS}/{name}")] {
            assert!(rows.contains(&text), "{rows}");
        }
        let path = "jsonpath='{range .items[*]}{.spec.metadata.site}{.metadata.annotations}{\"\\n\"}{end}'";
        let noted =
            server.kubectl(&format!("get etcdsnapshotfiles -o {path} | grep seven | grep -c snapshot-token-hash"));
        assert_eq!(noted.trim(), "2");
        name.clone()
    });
    step("an object deleted by hand comes back, and one without its file goes", || {
        server.kubectl("delete etcdsnapshotfiles --all");
        wait_until_told(&server, "kept-", &[("s3", true), ("server", true)]);
        server.succeed("k3s etcd-snapshot save --name other");
        wait_until_told(&server, "other-", &[("s3", true), ("server", true)]);
        server.succeed(&format!("rm {SNAPSHOTS}/other-*"));
        wait_until_told(&server, "other-", &[("s3", true)]);
        let other = told(&server, "other-")[0].1.clone();
        server.succeed(&format!("k3s etcd-snapshot delete {other}"));
        wait_until_told(&server, "other-", &[]);
    });
    step("pruned ones are told of no more", || {
        server.succeed("k3s etcd-snapshot save --name many && k3s etcd-snapshot save --name many");
        let both = [("s3", true), ("s3", true), ("server", true), ("server", true)];
        wait_until_told(&server, "many-", &both);
        server.succeed("k3s etcd-snapshot prune --name many --snapshot-retention=1 --s3-retention=1");
        wait_until_told(&server, "many-", &[("s3", true), ("server", true)]);
    });
    step("what missed the bucket while it was away gets there with the next one", || {
        s3.succeed(&format!("kill {0} && tail --pid={0} -f /dev/null", running.pid));
        server.stop_k3s();
        server.write("/etc/rancher/k3s/config.yaml", &config("*/6 * * * * *"));
        server.start_k3s("");
        let alone = "grep -o 'on the disk alone.*' /var/log/k3s.log | grep -o 'snapshot-server-[0-9]*' | sort -u";
        let missed = server.wait_until_succeeds(&format!("test $({alone} | wc -l) -ge 2 && {alone}"), PATIENCE);
        let missed = missed.lines().next().expect("there are two").to_owned();
        start_s3(&s3);
        server.wait_for_log(&format!("s3://backups/site-7/{missed}"));
        server.wait_until_succeeds(
            &format!("grep 'Saved a snapshot in S3' /var/log/k3s.log | grep -q {missed}"),
            PATIENCE,
        );
        server.stop_k3s();
    });
    step("a machine that has nothing but the token and the bucket goes on with an etcd of its own", || {
        fresh.write("/etc/rancher/k3s/config.yaml", &config("0 0 1 1 *"));
        let restored =
            fresh.succeed(&format!("k3s server --cluster-init --cluster-reset --cluster-reset-restore-path={kept}"));
        assert!(restored.contains("fresh-"), "{restored}");
        fresh.start_k3s("");
        fresh.wait_for_log("The Kubernetes API is served.");
        assert_eq!(fresh.kubectl("get configmap kept -o jsonpath={.data.value}"), "saved");
        // What is on a disk that is not there any more is told of no more; what was fetched, and the bucket, is.
        wait_until_told(&fresh, "kept-", &[("fresh", true), ("s3", true)]);
        wait_until_told(&fresh, "early-", &[("s3", false)]);
    });
}
