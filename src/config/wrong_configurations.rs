//! Wrong configurations, each with the sentence that its user reads and the exit code.

use crate::{Error, check, test_host::Host};

fn told(host: &Host, error: &Error) -> (u8, String) {
    (error.exit_code().into(), host.anonymous(error))
}

#[test]
fn on_the_command_line_of_a_server() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["--cluster-cdir=10.0.0.0/16"],
            "--cluster-cdir is not a flag of k3s server; use --cluster-cidr if that is meant",
        ),
        (&["--frobnicate"], "--frobnicate is not a flag of k3s server; see `--help` for all"),
        (&["-z"], "-z is not a flag of k3s server; see `--help` for all"),
        (
            &["start"],
            "`start` on the command line of k3s server belongs to no flag; write switches as --flag=true and quote values that contain spaces",
        ),
        (&["--node-name"], "--node-name needs a value; write it as --node-name=VALUE"),
        (&["--node-name", "--debug"], "--node-name needs a value; write it as --node-name=VALUE"),
        (&["--debug=maybe"], "--debug: the value is neither true nor false; write one of them"),
        (&["--data-dir="], "--data-dir: the value is empty; give one or leave the flag out"),
        (
            &["--config=nowhere.yaml"],
            "--config: DIR/nowhere.yaml cannot be read (No such file or directory (os error 2)); check that it exists and may be read",
        ),
        (
            &["--config=https://example.com/k3s.yaml"],
            "--config: a configuration file from the network is not served by this version; fetch it and name the file",
        ),
        // Addresses and ranges
        (
            &["--cluster-cidr=10.42.0.0"],
            "--cluster-cidr: `10.42.0.0` is not an address range; write it as 10.42.0.0/16",
        ),
        (
            &["--cluster-cidr=10.42.0.0/33"],
            "--cluster-cidr: `10.42.0.0/33` is not an address range; write it as 10.42.0.0/16",
        ),
        (
            &["--cluster-cidr=10.42.0.0/25"],
            "--cluster-cidr: 10.42.0.0/25 has no room for a node's /24; choose a range of /24 or larger",
        ),
        (
            &["--cluster-cidr=10.0.0.0/7"],
            "--cluster-cidr: 10.0.0.0/7 holds more than 65536 nodes' ranges of /24; choose one of /8 or smaller",
        ),
        (
            &["--cluster-cidr=10.42.0.0/16,10.44.0.0/16"],
            "--cluster-cidr: `10.44.0.0/16` is one range too many; give an IPv4 range, and an IPv6 range after it if there are to be two",
        ),
        (
            &["--cluster-cidr=10.42.0.0/16,fd00:42::/56"],
            "--cluster-cidr: pods and Services have to be of the same families; add an IPv6 range to --service-cidr",
        ),
        (
            &["--cluster-cidr=fd00:42::/56"],
            "--cluster-cidr: a cluster without IPv4, or with IPv6 (fd00:42::/56) first, is not served by this version; give an IPv4 range first",
        ),
        (
            &["--cluster-cidr=10.42.0.0/16,fd00:42::/47", "--service-cidr=10.43.0.0/16,fd00:43::/112"],
            "--cluster-cidr: fd00:42::/47 holds more than 65536 nodes' ranges of /64; choose one of /48 or smaller",
        ),
        (
            &["--cluster-cidr=10.42.0.0/16,fd00:42::/56", "--service-cidr=10.43.0.0/16,fd00:43::/64"],
            "--service-cidr: fd00:43::/64 is not between /108 and /125, as kube-apiserver wants it; choose such a range",
        ),
        (
            &["--cluster-cidr=10.42.0.0/16,fe80::/56", "--service-cidr=10.43.0.0/16,fd00:43::/112"],
            "--cluster-cidr: fe80::/56 overlaps fe80::/10, which hosts use themselves; choose a private range",
        ),
        (
            &["--cluster-cidr=10.42.0.0/16,fd00:42::/56", "--service-cidr=10.43.0.0/16,fd00:43::/112"],
            "--cluster-cidr: pods have addresses of both families, so their node needs one of each; give both with --node-ip",
        ),
        (
            &["--cluster-cidr=127.0.0.0/16"],
            "--cluster-cidr: 127.0.0.0/16 overlaps 127.0.0.0/8, which hosts use themselves; choose a private range",
        ),
        (
            &["--cluster-cidr=10.43.128.0/17"],
            "--cluster-cidr: 10.43.128.0/17 overlaps the service range 10.43.0.0/16 (the default of --service-cidr); choose ranges apart",
        ),
        (
            &["--service-cidr=10.42.0.0/20"],
            "--service-cidr: 10.42.0.0/20 overlaps the cluster range 10.42.0.0/16 (the default of --cluster-cidr); choose ranges apart",
        ),
        (
            &["--service-cidr=10.96.0.0/11"],
            "--service-cidr: 10.96.0.0/11 is not between /12 and /29, as kube-apiserver wants it; choose such a range",
        ),
        (
            &["--service-cidr=10.96.0.0/29"],
            "--service-cidr: 10.96.0.0/29 has no tenth address for the cluster's DNS; choose a larger range or give --cluster-dns",
        ),
        (
            &["--cluster-dns=10.44.0.10"],
            "--cluster-dns: 10.44.0.10 is not in the service range 10.43.0.0/16; choose an address in it, or bring a DNS of yours with --disable=coredns",
        ),
        (
            &["--cluster-dns=10.43.0.1"],
            "--cluster-dns: 10.43.0.1 is the address of the kubernetes Service; choose another one in 10.43.0.0/16",
        ),
        (
            &["--cluster-domain=Cluster_Local"],
            "--cluster-domain: `Cluster_Local` is not a DNS domain; write one such as cluster.local",
        ),
        (
            &["--node-ip=10.42.0.7"],
            "--node-ip: 10.42.0.7 lies in the cluster range 10.42.0.0/16; choose a cluster range apart",
        ),
        (
            &["--node-ip=127.0.0.1"],
            "--node-ip: 127.0.0.1 is not an address that other hosts can reach; give one of the host's own",
        ),
        (
            &["--node-ip=fe80::1"],
            "--node-ip: fe80::1 is not an address that other hosts can reach; give one of the host's own",
        ),
        (
            &["--node-ip=fd00::7"],
            "--node-ip: a node without IPv4, or with IPv6 (fd00::7) first, is not served by this version; give an IPv4 address first",
        ),
        (
            &["--node-ip=10.0.0.7,10.0.0.8"],
            "--node-ip: `10.0.0.8` is one address too many; give an IPv4 address, and an IPv6 address after it if pods have both",
        ),
        (
            &["--cluster-dns=fd00:43::a"],
            "--cluster-dns: Services have no addresses of the family of fd00:43::a; leave it out",
        ),
        (&["--bind-address=localhost"], "--bind-address: `localhost` is not an IPv4 address; write it as 192.0.2.10"),
        // Ports
        (&["--https-listen-port=http"], "--https-listen-port: `http` is not a port; write a number from 1 to 65535"),
        (
            &["--https-listen-port=65535"],
            "--https-listen-port: 65535 leaves no port above it for kube-apiserver; choose a lower one",
        ),
        (
            &["--https-listen-port=10249"],
            "--https-listen-port: 10249 will not do, as it and the port above are used here and 10249 is kube-proxy's; choose another one",
        ),
        (
            &["--service-node-port-range=high"],
            "--service-node-port-range: `high` is not a range of ports; write it as 30000-32767",
        ),
        // Names
        (
            &["--node-name=under_score"],
            "--node-name: `under_score` is not a node's name; give --node-name letters, digits, dashes and dots",
        ),
        (&["--node-name=localhost"], "--node-name: `localhost` names every host; name this node with --node-name"),
        (&["--node-label=tier"], "--node-label: `tier` is not a label; write it as KEY=VALUE"),
        (
            &["--node-label=node-role.kubernetes.io/worker=true"],
            "--node-label: kubelet may not set `node-role.kubernetes.io/worker` on its own node; set it with `k3s kubectl label node`",
        ),
        (
            &["--node-taint=dedicated=gpu:Never"],
            "--node-taint: `dedicated=gpu:Never` is not a taint; write it as KEY=VALUE:NoSchedule, :PreferNoSchedule or :NoExecute",
        ),
        (
            &["--tls-san=https://k3s.example.com"],
            "--tls-san: `https://k3s.example.com` is neither a DNS name nor an address; write one without scheme and port",
        ),
        (
            &["--flannel-iface=a-very-long-interface"],
            "--flannel-iface: `a-very-long-interface` is not an interface's name; use one that `ip link` shows",
        ),
        (&["--snapshotter=zfs2"], "--snapshotter: `zfs2` is not a snapshotter; use overlayfs, native, btrfs or zfs"),
        (
            &["--write-kubeconfig-mode=rw"],
            "--write-kubeconfig-mode: `rw` is not a file mode; write it in octal, such as 0644",
        ),
        (
            &["--system-default-registry=https://r.example.com"],
            "--system-default-registry: `https://r.example.com` is not a registry; write it as registry.example.com:5000",
        ),
        (
            &["--kube-apiserver-arg=requestheader-username-headers=X-Who"],
            "--kube-apiserver-arg: requestheader-username-headers is settled between k3s and kube-apiserver; leave it out",
        ),
        (&["--kubelet-arg=", "--kubelet-arg=--"], "--kubelet-arg: the value is empty; give one or leave the flag out"),
        (
            &["--kubelet-arg", "=50"],
            "--kubelet-arg: `=50` will not do: a component's argument is written name=value, with letters, digits, `-`, `_` and `.` in the name",
        ),
        (&["-v", "loud"], "-v: `loud` is not a level; write a number such as 2"),
        // Files
        (
            &["--resolv-conf=/nowhere"],
            "--resolv-conf: /nowhere cannot be read (No such file or directory (os error 2)); check that it exists and may be read",
        ),
        (
            &["--token-file=nowhere"],
            "--token-file: DIR/nowhere cannot be read (No such file or directory (os error 2)); check that it exists and may be read",
        ),
        (&["--token-file=empty"], "--token-file: DIR/empty is empty; write the token into it"),
        // Tokens
        (
            &["--token=hunter2", "--token-file=empty"],
            "--token-file: the token is given here and by --token too; keep one of them",
        ),
        (
            &["--token=K10beef::server:hunter2"],
            "--token: the CA hash after K10 is not 64 hexadecimal digits; copy the whole token",
        ),
        (
            &["--token=hunter 2"],
            "--token: the token holds white space or control characters; copy it again, without line breaks",
        ),
        (
            &["--token", "hunter", "2"],
            "a word on the command line of k3s server belongs to no flag; write switches as --flag=true and quote values that contain spaces",
        ),
        // Not there yet
        (&["--etcd-s3"], "--etcd-s3: snapshots in S3 need etcd-s3-access-key (or AWS_ACCESS_KEY_ID); give it too"),
        (
            &["--datastore-endpoint=postgres://"],
            "--datastore-endpoint: this is no database's address; write postgres://USER:PASSWORD@HOST:5432/DATABASE",
        ),
        (
            &["--datastore-endpoint=hunter2"],
            "--datastore-endpoint: this is no datastore's address; leave it out, or write sqlite:///FILE, https://HOST:2379, postgres://…, mysql://… or nats://…",
        ),
        (
            &["--flannel-backend=wireguard-native"],
            "--flannel-backend: this backend is not served by this version; use vxlan or host-gw, or none with a CNI plugin of yours",
        ),
        (&["--flannel-backend=calico"], "--flannel-backend: `calico` is not a backend; use vxlan, host-gw or none"),
        (
            &["--egress-selector-mode=node"],
            "--egress-selector-mode: `node` is not a mode; use agent, pod, cluster or disabled",
        ),
        (&["--selinux"], "--selinux: SELinux for containers is not served by this version; leave it out"),
        (
            &["--disable-selinux=false"],
            "--disable-selinux: SELinux for containers is not served by this version; leave it out",
        ),
        (
            &["--tls-san-security=false"],
            "--tls-san-security: a certificate for any name a client asks for is not served by this version; list the names with --tls-san",
        ),
    ];
    let host = Host::new().file("empty", "\n");
    for (args, sentence) in cases {
        let error = host.server(args).expect_err(sentence);
        assert_eq!(told(&host, &error), (64, (*sentence).to_owned()), "{args:?}");
    }
}

#[test]
fn in_a_configuration_file() {
    let cases = [
        ("- token\n", "DIR/config.yaml line 1: the file holds no mapping; write each flag as `name: value`"),
        ("v: 1\nv: 2\n", "DIR/config.yaml line 2: `v` is set again after line 1; merge the two"),
        (
            "kubelet-arg:\n  max-pods: 50\n",
            "DIR/config.yaml line 2: a value is a mapping; flags take one value or a list of values",
        ),
        (
            "# plan\ncluster-cidr: 10.42.0.0/40\n",
            "DIR/config.yaml line 2, cluster-cidr: `10.42.0.0/40` is not an address range; write it as 10.42.0.0/16",
        ),
        (
            "cluster-cidr: 10.0.0.0/16\nservice-cidr: 10.0.0.0/16\n",
            "DIR/config.yaml line 1, cluster-cidr: 10.0.0.0/16 overlaps the service range 10.0.0.0/16 (DIR/config.yaml line 2, service-cidr); choose ranges apart",
        ),
        (
            "tls-san:\n  - a.example\n  - 'b c'\n",
            "DIR/config.yaml line 3, tls-san: `b c` is neither a DNS name nor an address; write one without scheme and port",
        ),
        (
            "i: 192.0.2.7\nnode-ip: 192.0.2.8\n",
            "DIR/config.yaml line 2, node-ip: `node-ip` sets again what this file sets above; merge the two",
        ),
        ("node-name: [a, b]\n", "DIR/config.yaml line 1, node-name: the value is a list; this key takes one value"),
        ("debug: 2\n", "DIR/config.yaml line 1, debug: the value is neither true nor false; write one of them"),
        ("token: ''\n", "DIR/config.yaml line 1, token: the value is empty; give one or leave the flag out"),
        (
            "embedded-registry: true\n",
            "DIR/config.yaml line 1, embedded-registry: the embedded registry is not served by this version; leave it out and configure mirrors in registries.yaml",
        ),
    ];
    for (yaml, sentence) in cases {
        let host = Host::new().config(yaml);
        let error = host.server(&[]).expect_err(sentence);
        assert_eq!(told(&host, &error), (78, sentence.to_owned()), "{yaml:?}");
    }
    let host = Host::new().file("config.yaml.d/10-node.yaml", "node-taint: gpu\n");
    let error = host.server(&[]).expect_err("a drop-in is read without a main file");
    let sentence = "DIR/config.yaml.d/10-node.yaml line 1, node-taint: `gpu` is not a taint; \
                    write it as KEY=VALUE:NoSchedule, :PreferNoSchedule or :NoExecute";
    assert_eq!(told(&host, &error), (78, sentence.to_owned()));
}

#[test]
fn in_the_environment() {
    let cases = [
        (
            Host::new().variable("K3S_CONFIG_FILE", "nowhere.yaml"),
            "K3S_CONFIG_FILE: DIR/nowhere.yaml cannot be read (No such file or directory (os error 2)); check that it exists and may be read",
        ),
        (
            Host::new().variable("K3S_KUBECONFIG_MODE", "999"),
            "K3S_KUBECONFIG_MODE: `999` is not a file mode; write it in octal, such as 0644",
        ),
        (
            Host::new().variable("K3S_URL", "10.0.0.1:6443"),
            "K3S_URL: `10.0.0.1:6443` is not a server's address; write it as https://HOST:6443",
        ),
        (
            Host::new().named("localhost"),
            "the host's name: `localhost` names every host; name this node with --node-name",
        ),
        (
            Host::new().named("my_pi"),
            "the host's name: `my_pi` is not a node's name; give --node-name letters, digits, dashes and dots",
        ),
    ];
    for (host, sentence) in cases {
        let error = host.server(&[]).expect_err(sentence);
        assert_eq!(told(&host, &error), (78, sentence.to_owned()));
    }
}

#[test]
fn of_an_agent() {
    let cases: &[(&[&str], &str)] = &[
        (&["--token=t"], "--server: an agent needs a server to join; give its address as https://HOST:6443"),
        (
            &["--server=https://s:6443"],
            "--token: an agent needs a token to join; give the one in server/token of the server",
        ),
        (
            &["--server=http://s:6443", "--token=t"],
            "--server: `http://s:6443` is not a server's address; write it as https://HOST:6443",
        ),
        (&["--server=https://s:0", "--token=t"], "--server: `0` is not a port; write a number from 1 to 65535"),
        (
            &["--server=https://s/join", "--token=t"],
            "--server: `https://s/join` is not a server's address; write it as https://HOST:6443",
        ),
        (&["--cluster-cidr=10.0.0.0/16"], "--cluster-cidr is a flag of k3s server, not of k3s agent; leave it out"),
        (
            &["--no-flannel"],
            "--no-flannel: switching the overlay off on one node is not served by this version; use --flannel-backend=none on the server",
        ),
        (
            &["--docker"],
            "--docker: a container runtime of one's own is not served by this version; leave it out to run the containerd that comes along",
        ),
    ];
    for (args, sentence) in cases {
        let host = Host::new();
        let error = host.agent(args).expect_err(sentence);
        assert_eq!(told(&host, &error), (64, (*sentence).to_owned()), "{args:?}");
    }
}

#[test]
fn unknown_keys_warn_and_only_a_check_refuses_them() {
    let host = Host::new().config("debug: true\nnode_name: a\nfrobnicate: [1]\ndisable-apiserver-lb: true\n");
    let (_, warnings) = host.server(&[]).expect("k3s skips unknown keys too");
    let told: Vec<_> = warnings.iter().map(|warning| host.anonymous(warning)).collect();
    assert_eq!(
        told,
        [
            "DIR/config.yaml line 2: `node_name` is not a key and is skipped; use node-name if that is meant.",
            "DIR/config.yaml line 3: `frobnicate` is not a key and is skipped; keys are the names of flags without dashes.",
        ]
    );
    let error = Error::from(check(&warnings).expect_err("a check refuses"));
    assert_eq!(u8::from(error.exit_code()), 78);
    assert_eq!(
        host.anonymous(error),
        "DIR/config.yaml line 2: `node_name` is not a key; use node-name if that is meant"
    );
}

#[test]
fn secrets_are_neither_in_errors_nor_in_debug_output() {
    let host = Host::new().config("token: hunter2\n").variable("K3S_AGENT_TOKEN", "hunter2");
    let (config, _) = host.server(&["--datastore-endpoint=sqlite:///hunter2"]).expect("a valid configuration");
    let shown = format!("{config:?}").replace("path: \"/hunter2\"", "");
    assert!(!shown.contains("hunter2"), "{shown}");
    for args in [
        &["--token=a\nhunter2"] as &[_],
        &["--token=K10hunter2"],
        &["--tokn=hunter2"],
        &["--token", "a", "hunter2"],
        &["--datastore-endpoint=mysql://k3s:hunter2@tcp(db )/"],
        &["--vpn-auth=name=tailscale,joinKey=hunter2"],
        &["--etcd-s3-secret-key=hunter2"],
    ] {
        let error = Host::new().server(args).expect_err("a wrong configuration");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn a_node_port_range_that_takes_the_nodes_own_ports_is_warned_about() {
    let host = Host::new();
    for (arg, told) in [
        (
            "--service-node-port-range=1024-32767",
            "The NodePort range 1024-32767 contains 6443, where the server listens",
        ),
        ("--https-listen-port=30000", "The NodePort range 30000-32767 contains 30000, where the server listens"),
    ] {
        let (_, warnings) = host.server(&[arg]).unwrap();
        assert!(warnings.iter().any(|warning| warning.to_string().starts_with(told)), "{warnings:?}");
    }
}
