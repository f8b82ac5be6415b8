//! The table itself: a row is `switch`, `text` or `list` and what follows it (`flags.rs`). What was given is taken out of `Values` in the
//! `from_values` of the structure that it is for.

use super::{Flag, Kind, Refusal, Section};

pub(super) const SECTIONS: &[Section] = &[
    Section {
        heading: "Configuration and logs",
        flags: &[
            text("config", "FILE", "File with flags as YAML keys; files in FILE.d/ are added to it")
                .short('c')
                .env("K3S_CONFIG_FILE")
                .default("/etc/rancher/k3s/config.yaml"),
            switch("debug", "Log what is done in detail").env("K3S_DEBUG"),
            text("v", "LEVEL", "Verbosity of the Kubernetes components").short('v').default("0"),
            text("vmodule", "PATTERNS", "Verbosity by source file").unserved(refusal(
                "verbosity by source file",
                "pass it to the component itself, as in --kubelet-arg=vmodule=PATTERN=N",
            )),
            text("log", "FILE", "Log to a file")
                .short('l')
                .unserved(refusal("logging to a file", "leave it out and read the journal or redirect standard error")),
            switch("alsologtostderr", "Log to standard error too")
                .accepted("logs always go to the journal or to standard error"),
        ],
    },
    Section {
        heading: "Listener",
        flags: &[
            text("bind-address", "IP", "Address to listen on").default("0.0.0.0"),
            text("https-listen-port", "PORT", "Port to listen on; kube-apiserver takes the next one on loopback")
                .default("6443")
                .server(),
            text("supervisor-port", "PORT", "Port of the supervisor").default("0").server().unserved(PORTS),
            text("apiserver-port", "PORT", "Port of kube-apiserver").default("0").server().unserved(PORTS),
            text("apiserver-bind-address", "IP", "Address of kube-apiserver").server().unserved(refusal(
                "a kube-apiserver that listens elsewhere than on loopback",
                "use --bind-address for the address that clients reach",
            )),
            text(
                "advertise-address",
                "IP",
                "Address that kube-apiserver publishes for itself; the node's if not given",
            )
            .server(),
            text("advertise-port", "PORT", "Port that it publishes; the one listened on if not given").server(),
            list("tls-san", "NAME", "Further name or address on the server's certificate").server(),
            switch("tls-san-security", "Keep names that nobody configured off the server's certificate")
                .default("true")
                .server()
                .unserved(refusal("a certificate for any name a client asks for", "list the names with --tls-san")),
        ],
    },
    Section {
        heading: "Data",
        flags: &[
            text("data-dir", "DIR", "Where all state is kept")
                .short('d')
                .env("K3S_DATA_DIR")
                .default("/var/lib/rancher/k3s"),
            text("default-local-storage-path", "DIR", "Where local volumes are kept; <data-dir>/storage if not given")
                .server(),
        ],
    },
    Section {
        heading: "Networking",
        flags: &[
            list("cluster-cidr", "CIDR", "Address range of pods").default("10.42.0.0/16").server(),
            list("service-cidr", "CIDR", "Address range of services").default("10.43.0.0/16").server(),
            text("service-node-port-range", "FIRST-LAST", "Ports for NodePort services")
                .default("30000-32767")
                .server(),
            list("cluster-dns", "IP", "Address of the cluster's DNS; the tenth of the service range if not given")
                .server(),
            text("cluster-domain", "DOMAIN", "The cluster's DNS domain").default("cluster.local").server(),
            text(
                "flannel-backend",
                "BACKEND",
                "How pods reach other nodes: vxlan, host-gw (nodes on one network), or none for a CNI plugin of yours",
            )
            .default("vxlan")
            .server()
            .unserved_values(
                &["wireguard-native", "wireguard", "tailscale", "ipsec", "extension", "udp"],
                refusal("this backend", "use vxlan or host-gw, or none with a CNI plugin of yours"),
            ),
            switch("flannel-ipv6-masq", "What pods send out of the cluster by IPv6 takes the node's address").server(),
            switch("flannel-external-ip", "Nodes reach each other by their external addresses").server(),
            text(
                "egress-selector-mode",
                "MODE",
                "What the control plane reaches through nodes' tunnels: kubelets (agent), pods too (pod or cluster), or nothing (disabled)",
            )
            .default("agent")
            .server(),
            text("servicelb-namespace", "NAME", "Namespace in which k3s had its load balancer's pods, which are deleted there")
                .default("kube-system")
                .server(),
            text("servicelb-priority-class", "NAME", "Priority class of the load balancer's pods")
                .default("system-node-critical")
                .server()
                .accepted("the load balancer for Services has no pods"),
        ],
    },
    Section {
        heading: "Client",
        flags: &[
            text("write-kubeconfig", "FILE", "Where the administrator's kubeconfig goes")
                .short('o')
                .env("K3S_KUBECONFIG_OUTPUT")
                .default("/etc/rancher/k3s/k3s.yaml")
                .server(),
            text("write-kubeconfig-mode", "MODE", "Its permission bits, in octal")
                .env("K3S_KUBECONFIG_MODE")
                .default("0600")
                .server(),
            text("write-kubeconfig-group", "GROUP", "Its group").env("K3S_KUBECONFIG_GROUP").server(),
        ],
    },
    Section {
        heading: "Cluster",
        flags: &[
            text("token", "TOKEN", "Secret that nodes join with").short('t').env("K3S_TOKEN").secret(),
            text("token-file", "FILE", "File that holds it").env("K3S_TOKEN_FILE"),
            text("agent-token", "TOKEN", "Secret that agents, but not servers, join with")
                .env("K3S_AGENT_TOKEN")
                .secret()
                .server(),
            text("agent-token-file", "FILE", "File that holds it").env("K3S_AGENT_TOKEN_FILE").server(),
            text("cluster-secret", "TOKEN", "Old name of --token").env("K3S_CLUSTER_SECRET").secret().renamed("token"),
            switch("cluster-init", "Start a cluster on embedded etcd, which further servers join")
                .env("K3S_CLUSTER_INIT")
                .server(),
            switch("cluster-reset", "Make this server the only member of its etcd, or restore the snapshot of --cluster-reset-restore-path, and end")
                .env("K3S_CLUSTER_RESET")
                .server(),
            text("cluster-reset-restore-path", "FILE", "Snapshot to restore").server(),
        ],
    },
    Section {
        heading: "Joining",
        flags: &[
            text("server", "URL", "Server to join, as https://HOST:6443; a server joins its embedded etcd")
                .short('s')
                .env("K3S_URL"),
            text("lb-server-port", "PORT", "Local port of the load balancer in front of the servers")
                .env("K3S_LB_SERVER_PORT")
                .default("6444")
                .agent(),
            text("lb-server-port", "PORT", "Local port of the load balancer in front of other servers, with --disable-apiserver")
                .env("K3S_LB_SERVER_PORT")
                .default("6444")
                .server(),
            switch("disable-apiserver-lb", "Talk to the server without the load balancer")
                .agent()
                .unserved(refusal("an agent without its load balancer", LEAVE_OUT)),
        ],
    },
    Section {
        heading: "Datastore",
        flags: &[
            text("datastore-endpoint", "URL", "Where the cluster's state is kept: sqlite:///FILE; for several servers https://HOST:2379,… of an etcd, postgres://…, mysql://… or nats://…")
                .env("K3S_DATASTORE_ENDPOINT")
                .secret()
                .server(),
            text("datastore-cafile", "FILE", "Certificate authority of an https datastore; the operating system's if not given")
                .env("K3S_DATASTORE_CAFILE")
                .server(),
            text("datastore-certfile", "FILE", "Certificate to show it")
                .env("K3S_DATASTORE_CERTFILE")
                .server(),
            text("datastore-keyfile", "FILE", "Its key")
                .env("K3S_DATASTORE_KEYFILE")
                .server(),
            text("datastore-max-idle-connections", "COUNT", "Idle connections to a database that kine keeps; 20 if not given").server(),
            text("datastore-max-open-connections", "COUNT", "Connections to a database that kine opens at most; no limit if not given").server(),
            text("datastore-connection-max-lifetime", "DURATION", "How long kine uses a connection to a database, such as 1h; for ever if not given").server(),
            switch("kine-tls", "TLS on the datastore's socket")
                .server()
                .unserved(refusal("TLS on the datastore's own socket, which only root can open,", LEAVE_OUT)),
            text(
                "snapshot-schedule-cron",
                "CRON",
                "When to take snapshots of the datastore, in local time, such as 0 */12 * * *; never if not given",
            )
            .server(),
            text("snapshot-retention", "COUNT", "Scheduled snapshots to keep; 0 keeps all").default("5").server(),
            text("snapshot-dir", "DIR", "Where snapshots go; <data-dir>/server/db/snapshots if not given").server(),
            text("snapshot-name", "NAME", "What the names of scheduled snapshots begin with")
                .default("snapshot")
                .server(),
            switch("snapshot-compress", "Compress snapshots").server(),
            switch("etcd-disable-snapshots", "Take no scheduled snapshots, whatever the schedule says").server(),
            text("etcd-snapshot-schedule-cron", "CRON", "When to take snapshots")
                .server()
                .synonym("snapshot-schedule-cron"),
            text("etcd-snapshot-retention", "COUNT", "Snapshots to keep").server().synonym("snapshot-retention"),
            text("etcd-snapshot-dir", "DIR", "Where snapshots go").server().synonym("snapshot-dir"),
            text("etcd-snapshot-name", "NAME", "Name of snapshots").server().synonym("snapshot-name"),
            switch("etcd-snapshot-compress", "Compress snapshots").server().synonym("snapshot-compress"),
            text("etcd-snapshot-reconcile-interval", "TIME", "How often to compare ETCDSnapshotFile objects with the snapshots that there are")
                .default("10m")
                .server(),
            switch("etcd-expose-metrics", "Show the embedded etcd's metrics at the node's address too, on port 2381").server(),
            switch("etcd-s3", "Keep snapshots in S3, too").server(),
            text("etcd-s3-endpoint", "HOST", "Who serves S3, as HOST or HOST:PORT").default("s3.amazonaws.com").server(),
            text("etcd-s3-endpoint-ca", "FILE", "Authorities of its certificate, as files or as base64 of PEM, with spaces between; those of the system if not given").server(),
            switch("etcd-s3-skip-ssl-verify", "Do not check its certificate").server(),
            text("etcd-s3-access-key", "KEY", "Access key of S3").env("AWS_ACCESS_KEY_ID").secret().server(),
            text("etcd-s3-secret-key", "KEY", "Secret key of S3").env("AWS_SECRET_ACCESS_KEY").secret().server(),
            text("etcd-s3-session-token", "TOKEN", "Token that temporary keys come with").env("AWS_SESSION_TOKEN").secret().server(),
            text("etcd-s3-bucket", "NAME", "Bucket for snapshots").server(),
            text("etcd-s3-bucket-lookup-type", "TYPE", "Whether the bucket is in the host's name or in the path: auto, dns or path")
                .default("auto")
                .server(),
            text("etcd-s3-region", "NAME", "Region of the bucket").default("us-east-1").server(),
            text("etcd-s3-folder", "NAME", "Folder in the bucket").server(),
            text("etcd-s3-proxy", "URL", "Proxy on the way to S3, as http://HOST:PORT; the environment's if not given").secret().server(),
            text("etcd-s3-config-secret", "NAME", "Secret in kube-system that has all of these settings").server(),
            switch("etcd-s3-insecure", "Talk to S3 without TLS").server(),
            text("etcd-s3-timeout", "TIME", "How long one operation in S3 may take").default("5m0s").server(),
            text("etcd-s3-retention", "COUNT", "Scheduled snapshots to keep in S3; 0 keeps all").default("5").server(),
        ],
    },
    Section {
        heading: "Components",
        flags: &[
            list(
                "disable",
                "NAME",
                "Add-on to leave out: coredns, servicelb, traefik, local-storage, metrics-server, runtimes, or a manifest by its name",
            )
            .server(),
            switch("disable-scheduler", "Run no kube-scheduler").server(),
            switch("disable-cloud-controller", "Leave nodes to a cloud controller of yours").server(),
            switch("disable-kube-proxy", "Run no kube-proxy").server(),
            switch("disable-network-policy", "Enforce no network policies").server(),
            switch("disable-helm-controller", "Install no Helm charts").server(),
            switch("disable-controller-manager", "Run no kube-controller-manager").server().hidden(),
            switch("disable-agent", "Run no node beside the control plane").server(),
            switch("disable-apiserver", "Run no kube-apiserver: be there for etcd, and use that of the cluster's other servers").server(),
            switch("disable-etcd", "Run no etcd: use that of the cluster's other servers, which --server names one of").server(),
            text("helm-job-image", "IMAGE", "Image of Helm jobs")
                .server()
                .accepted("Helm runs in the server itself and needs no image"),
            switch("embedded-registry", "Share images between nodes")
                .server()
                .unserved(refusal("the embedded registry", "leave it out and configure mirrors in registries.yaml")),
            switch("supervisor-metrics", "Show metrics of k3s itself at /metrics of servers and agents")
                .server(),
            text("resource-profile", "PROFILE", "How much memory programs are set up for: small (below 1.5 GiB), standard, or auto for whichever suits the memory there is")
                .default("auto"),
            switch("secrets-encryption", "Encrypt Secrets in the datastore").server(),
            text("secrets-encryption-provider", "NAME", "How keys to come encrypt them: aescbc or secretbox")
                .default("aescbc")
                .server(),
            list("kube-apiserver-arg", "NAME=VALUE", "Argument for kube-apiserver").server(),
            list("kube-controller-manager-arg", "NAME=VALUE", "Argument for kube-controller-manager").server(),
            list("kube-controller-arg", "NAME=VALUE", "Old name of --kube-controller-manager-arg")
                .server()
                .renamed("kube-controller-manager-arg"),
            list("kube-scheduler-arg", "NAME=VALUE", "Argument for kube-scheduler").server(),
            list("kube-cloud-controller-manager-arg", "NAME=VALUE", "Argument for the cloud controller")
                .server()
                .unserved(CLOUD),
            list("kube-cloud-controller-arg", "NAME=VALUE", "Argument for the cloud controller")
                .server()
                .unserved(CLOUD),
            list("etcd-arg", "NAME=VALUE", "Argument for the embedded etcd").server(),
        ],
    },
    Section {
        heading: "Node",
        flags: &[
            text("node-name", "NAME", "Name of the node; the host's name if not given").env("K3S_NODE_NAME"),
            switch("with-node-id", "Append a stable id to the node's name"),
            list("node-label", "KEY=VALUE", "Label that the node registers with"),
            list("node-taint", "KEY=VALUE:EFFECT", "Taint that the node registers with"),
            list("node-ip", "IP", "Address of the node; found by the default route if not given").short('i'),
            list("node-external-ip", "IP", "Address that the outside reaches the node by"),
            list("node-internal-dns", "NAME", "DNS name of the node inside"),
            list("node-external-dns", "NAME", "DNS name of the node outside"),
            text("resolv-conf", "FILE", "resolv.conf that pods inherit").env("K3S_RESOLV_CONF"),
            text("flannel-iface", "NAME", "Interface that the overlay runs over"),
            text("flannel-cni-conf", "FILE", "CNI configuration to install instead of the built-in one"),
            text("flannel-conf", "FILE", "Configuration of flannel").unserved(FLANNEL),
            switch("protect-kernel-defaults", "Fail rather than change kernel settings for kubelet"),
            switch("selinux", "SELinux for containers").env("K3S_SELINUX").unserved(SELINUX),
            list("kubelet-arg", "NAME=VALUE", "Argument for kubelet"),
            list("kube-proxy-arg", "NAME=VALUE", "Argument for kube-proxy"),
            text("image-credential-provider-bin-dir", "DIR", "Programs that give credentials for images")
                .default("/var/lib/rancher/credentialprovider/bin")
                .unserved(CREDENTIALS),
            text("image-credential-provider-config", "FILE", "Their configuration")
                .default("/var/lib/rancher/credentialprovider/config.yaml")
                .unserved(CREDENTIALS),
            text("vpn-auth", "TEXT", "Credentials of a VPN").env("K3S_VPN_AUTH").secret().unserved(VPN),
            text("vpn-auth-file", "FILE", "File that holds them").env("K3S_VPN_AUTH_FILE").unserved(VPN),
            switch("no-flannel", "Old form of --flannel-backend=none").server().deprecated("--flannel-backend=none"),
            switch("no-flannel", "Run no overlay on this node")
                .agent()
                .unserved(refusal("switching the overlay off on one node", "use --flannel-backend=none on the server")),
            switch("disable-selinux", "No SELinux for containers")
                .deprecated("nothing, as SELinux for containers is off unless --selinux is given"),
        ],
    },
    Section {
        heading: "Containers",
        flags: &[
            text("snapshotter", "NAME", "containerd's snapshotter: overlayfs, native, btrfs or zfs")
                .default("overlayfs")
                .unserved_values(
                    &["fuse-overlayfs", "stargz"],
                    refusal("this snapshotter", "use overlayfs, native, btrfs or zfs"),
                ),
            text("private-registry", "FILE", "Registries' mirrors and credentials")
                .default("/etc/rancher/k3s/registries.yaml"),
            text("system-default-registry", "HOST", "Registry to take all packaged images from")
                .env("K3S_SYSTEM_DEFAULT_REGISTRY")
                .server(),
            text("pause-image", "IMAGE", "Image of pods' sandboxes; the built-in one if not given"),
            text("default-runtime", "NAME", "Runtime of pods that name none"),
            switch("nonroot-devices", "Devices of pods that run as another user belong to that user"),
            switch("disable-default-registry-endpoint", "Pull from mirrors alone where a registry has some"),
            list("airgap-extra-registry", "HOST", "Registry as whose images imported ones are known too"),
            switch("docker", "Run containers with Docker").unserved(RUNTIME),
            text("container-runtime-endpoint", "SOCKET", "Another container runtime").unserved(RUNTIME),
            text("image-service-endpoint", "SOCKET", "Another image service").unserved(RUNTIME),
            switch("rootless", "Run without root").unserved(ROOTLESS),
            switch("prefer-bundled-bin", "Prefer the programs that come along")
                .accepted("the programs that come along are always preferred"),
            switch("enable-pprof", "Serve profiles")
                .unserved(refusal("profiling over the supervisor's port", LEAVE_OUT)),
        ],
    },
];

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag::new(Kind::Switch, name, "BOOL", help)
}

const fn text(name: &'static str, placeholder: &'static str, help: &'static str) -> Flag {
    Flag::new(Kind::Text, name, placeholder, help)
}

const fn list(name: &'static str, placeholder: &'static str, help: &'static str) -> Flag {
    Flag::new(Kind::List, name, placeholder, help)
}

const fn refusal(what: &'static str, instead: &'static str) -> Refusal {
    Refusal { what, instead }
}

const LEAVE_OUT: &str = "leave it out";
pub(crate) const SELINUX: Refusal = refusal("SELinux for containers", LEAVE_OUT);
const PORTS: Refusal =
    refusal("a second port for the supervisor or kube-apiserver", "use --https-listen-port for both");
const FLANNEL: Refusal = refusal("a configuration of flannel", "leave it out, and choose with --flannel-backend");
const RUNTIME: Refusal =
    refusal("a container runtime of one's own", "leave it out to run the containerd that comes along");
const VPN: Refusal = refusal("an overlay over a VPN", "leave it out to use vxlan");
const ROOTLESS: Refusal = refusal("running without root", "leave it out and run as root");
const CREDENTIALS: Refusal = refusal("a credential provider for images", "put credentials into registries.yaml");
const CLOUD: Refusal = refusal(
    "an argument for the cloud controller, which is part of k3s itself,",
    "leave it out, or use --disable-cloud-controller",
);
