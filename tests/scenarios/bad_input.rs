//! What a user gets wrong, and machines that are not fit: one sentence that says what to do, an exit code, and nothing touched.

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::refusal::{
    CANNOT_CREATE, CONFIGURATION, DATA_ERROR, IN_USE, IO_ERROR, UNAVAILABLE, USAGE, last_line, refused,
};

/// The datastore alone, at its usual place.
const DATASTORE: &str = "k3s datastore serve --listen unix:///run/datastore.sock";

/// Command lines of `k3s server`, each with the sentence that it is refused with.
const FLAGS: [(&str, &str); 25] = [
    ("--frobnicate", "--frobnicate is not a flag of k3s server; see `--help` for all"),
    ("--cluster-cdir=10.0.0.0/16", "use --cluster-cidr if that is meant"),
    ("start", "belongs to no flag; write switches as --flag=true"),
    ("--node-name", "--node-name needs a value; write it as --node-name=VALUE"),
    ("--debug=maybe", "--debug: the value is neither true nor false; write one of them"),
    ("--config=/nowhere.yaml", "--config: /nowhere.yaml cannot be read"),
    ("--cluster-cidr=10.42.0.0/33", "--cluster-cidr: `10.42.0.0/33` is not an address range; write it as 10.42.0.0/16"),
    ("--cluster-cidr=10.42.0.0/25", "--cluster-cidr: 10.42.0.0/25 has no room for a node's /24"),
    (
        "--cluster-cidr=10.43.0.0/17",
        "10.43.0.0/17 overlaps the service range 10.43.0.0/16 (the default of --service-cidr)",
    ),
    ("--service-cidr=10.96.0.0/11", "--service-cidr: 10.96.0.0/11 is not between /12 and /29"),
    ("--cluster-dns=10.44.0.10", "--cluster-dns: 10.44.0.10 is not in the service range 10.43.0.0/16"),
    ("--cluster-domain=Cluster_Local", "--cluster-domain: `Cluster_Local` is not a DNS domain"),
    ("--node-ip=10.42.0.7", "--node-ip: 10.42.0.7 lies in the cluster range 10.42.0.0/16"),
    ("--node-ip=127.0.0.1", "--node-ip: 127.0.0.1 is not an address that other hosts can reach"),
    ("--bind-address=localhost", "--bind-address: `localhost` is not an IPv4 address"),
    ("--https-listen-port=65535", "--https-listen-port: 65535 leaves no port above it for kube-apiserver"),
    ("--service-node-port-range=high", "`high` is not a range of ports; write it as 30000-32767"),
    ("--kube-apiserver-arg=secure-port=7000", "secure-port is settled between k3s and kube-apiserver; leave it out"),
    ("--node-name=under_score", "--node-name: `under_score` is not a node's name"),
    (
        "--node-label=node-role.kubernetes.io/worker=true",
        "kubelet may not set `node-role.kubernetes.io/worker` on its own",
    ),
    ("--node-taint=dedicated=gpu:Never", "--node-taint: `dedicated=gpu:Never` is not a taint"),
    ("--tls-san=https://k3s.example.com", "is neither a DNS name nor an address; write one without scheme and port"),
    (
        "--token=K10beef::server:secret",
        "--token: the CA hash after K10 is not 64 hexadecimal digits; copy the whole token",
    ),
    ("--etcd-s3", "--etcd-s3: snapshots in S3 need etcd-s3-access-key (or AWS_ACCESS_KEY_ID); give it too"),
    ("--flannel-backend=wireguard-native", "--flannel-backend: this backend is not served by this version"),
];

/// `/etc/rancher/k3s/config.yaml`.
const FILES: [(&str, &str); 6] = [
    ("- token", "/etc/rancher/k3s/config.yaml line 1: the file holds no mapping"),
    ("v: 1\nv: 2", "config.yaml line 2: `v` is set again after line 1; merge the two"),
    ("kubelet-arg:\n  max-pods: 50", "config.yaml line 2: a value is a mapping"),
    ("# plan\ncluster-cidr: 10.42.0.0/40", "config.yaml line 2, cluster-cidr: `10.42.0.0/40` is not an address range"),
    ("node-name: [a, b]", "config.yaml line 1, node-name: the value is a list; this key takes one value"),
    (
        "embedded-registry: true",
        "config.yaml line 1, embedded-registry: the embedded registry is not served by this version",
    ),
];

#[test]
fn wrong_configurations_are_refused_before_anything_is_touched() {
    let network = Network::new();
    let node = Node::boot(&network, "node");
    step("wrong flags", || {
        for (flags, sentence) in FLAGS {
            refused(&node.execute(&format!("k3s server {flags}")), USAGE, sentence);
        }
    });
    step("wrong configuration files", || {
        for (content, sentence) in FILES {
            node.write("/etc/rancher/k3s/config.yaml", content);
            refused(&node.execute("k3s server"), CONFIGURATION, sentence);
            refused(&node.execute("k3s check-config"), CONFIGURATION, sentence);
        }
        node.succeed("rm -r /etc/rancher/k3s");
    });
    step("an unknown key is refused by check-config only", || {
        node.write("/etc/rancher/k3s/config.yaml", "node_name: a");
        let sentence = "config.yaml line 1: `node_name` is not a key; use node-name if that is meant";
        refused(&node.execute("k3s check-config"), CONFIGURATION, sentence);
        node.succeed("rm -r /etc/rancher/k3s");
    });
    step("wrong variables", || {
        let sentence = "K3S_KUBECONFIG_MODE: `999` is not a file mode; write it in octal, such as 0644";
        refused(&node.execute("K3S_KUBECONFIG_MODE=999 k3s server"), CONFIGURATION, sentence);
    });
    step("a missing component", || {
        node.succeed(
            "mkdir -p /tmp/k3s/bin /tmp/k3s/libexec && cp /opt/k3s/bin/k3s /tmp/k3s/bin
             cp -as /opt/k3s/libexec/k3s /tmp/k3s/libexec/ && rm /tmp/k3s/libexec/k3s/runc",
        );
        let no_other = node.succeed("printenv PATH").replace("/opt/k3s/bin:", "");
        let finished = node.execute(&format!("PATH={} /tmp/k3s/bin/k3s server", no_other.trim()));
        refused(&finished, UNAVAILABLE, "runc");
    });
    node.fail("ls -d /var/lib/rancher || ls -d /run/k3s || ls -d /etc/rancher/* || ls -d /var/lib/kubelet");
}

#[test]
fn unfit_machines_are_told_what_they_lack() {
    let network = Network::new();
    let node = Node::boot(&network, "node");
    let data = "/var/lib/rancher/k3s";
    node.succeed("mkdir -p /var/lib/rancher");
    step("a read-only disk", || {
        node.succeed("mount -t tmpfs -o ro tmpfs /var/lib/rancher");
        refused(&node.execute("k3s server"), CANNOT_CREATE, "Read-only file system");
        node.succeed("umount /var/lib/rancher");
    });
    step("a full disk", || {
        for size in ["16k", "300k"] {
            node.succeed(&format!("mount -t tmpfs -o size={size} tmpfs /var/lib/rancher"));
            let finished = node.execute("k3s server");
            assert!([CANNOT_CREATE, IO_ERROR].contains(&finished.code), "{size}: {finished}");
            refused(&finished, finished.code, "/var/lib/rancher/k3s");
            assert!(last_line(&finished).contains("full") || last_line(&finished).contains("space"), "{finished}");
            node.succeed("umount /var/lib/rancher");
        }
    });
    step("a taken port", || {
        let taker = node.background("exec busybox httpd -f -p 6443");
        node.wait_for_open_port(6443, PATIENCE);
        let sentence = "stop the program that has it, or choose another --https-listen-port";
        refused(&node.execute("k3s server"), UNAVAILABLE, sentence);
        node.succeed(&format!("kill {}", taker.pid));
    });
    step("a foreign file where a CA should be", || {
        node.write(&format!("{data}/server/tls/server-ca.crt"), "my notes\n");
        let sentence = format!("{data}/server/tls/server-ca.crt is not a certificate authority in PEM form");
        refused(&node.execute("k3s server"), CONFIGURATION, &sentence);
        assert_eq!(node.succeed(&format!("cat {data}/server/tls/server-ca.crt")), "my notes\n");
        node.succeed(&format!("rm -r {data}"));
    });
    step("a foreign file where the database should be", || {
        node.write(&format!("{data}/server/db/state.db"), "my notes\n");
        let sentence = format!("{data}/server/db/state.db is not an SQLite database; it is left as it is");
        refused(&node.execute("k3s server"), DATA_ERROR, &sentence);
        refused(&node.execute(DATASTORE), DATA_ERROR, &sentence);
        assert_eq!(node.succeed(&format!("cat {data}/server/db/state.db")), "my notes\n");
        node.succeed(&format!("rm -r {data}"));
    });
    step("a database in use, and one that lost its log in a crash", || {
        let server = node.background(&format!("exec {DATASTORE}"));
        node.wait_until_succeeds(&format!("grep -q open {data}/server/db/state.db-lock"), PATIENCE);
        for verb in ["k3s server", "k3s datastore serve --listen unix:///run/second.sock"] {
            refused(&node.execute(verb), IN_USE, "is in use by another process: stop that one first");
        }
        node.succeed(&format!("kill -KILL {}; rm {data}/server/db/state.db-wal", server.pid));
        for verb in ["k3s server", DATASTORE] {
            refused(&node.execute(verb), DATA_ERROR, "state.db-wal is missing");
        }
        node.succeed(&format!("rm -r {data}"));
    });
    step("a database on a disk that is read-only", || {
        node.succeed(&format!("mkdir -p {data}/server/db && mount -t tmpfs -o ro tmpfs {data}/server/db"));
        for verb in ["k3s server", DATASTORE] {
            refused(&node.execute(verb), IO_ERROR, "it has to be writable: remount the file system");
        }
        node.succeed(&format!("umount {data}/server/db"));
    });
    node.fail("pgrep kube || pgrep containerd || pgrep -x k3s");
}
