//! kube-apiserver: on loopback, one port above the front, with the datastore on a unix socket or elsewhere.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use k3s_config::{
    ControlPlaneConfig,
    datastore::{ClientCertificate, Datastore, Etcd, EtcdEndpoint, Reached},
    server::EgressMode,
};
use k3s_supervise::program::{Liveness, Probe, Program, Stop};
use serde_json::json;

use crate::{
    Paths, capabilities,
    etcd::CLIENT_PORT,
    kine::SOCKET,
    launch::{File, Flags, Launch},
    libexec::Components,
    resources::Collector,
};

/// TLS 1.2 suites that k3s offers where the user names none; 1.3's are always on.
const CIPHER_SUITES: &str = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,\
TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\
TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256";

/// As the startup probe of kubeadm's static pod has it. Servers of one SQL database can need it when they start at once: kine's lists pass over
/// a row that is committed after one with a higher id (<https://github.com/k3s-io/kine/issues/676>), and kube-apiserver waits for ever for
/// an APIService of its own that it has missed.
const START: Duration = Duration::from_secs(240);

/// Off everywhere: it would have kube-apiserver tell the front to go after each 401, and with it everybody else on the same connection;
/// the front does the same to the one client whose request it was.
const DOS_MITIGATION_OFF: &str = "UnauthenticatedHTTP2DOSMitigation=false";
/// Requests for versions that only another server knows would go from one kube-apiserver to the other, and each listens on loopback.
const NO_PEERS: &str = "UnknownVersionInteroperabilityProxy=false";
/// A lease that each kube-apiserver renews every ten seconds, for those that count them; one alone need not.
const APISERVER_IDENTITY_OFF: &str = "APIServerIdentity=false";

/// Collecting twice as often costs a hundredth of a core and gives back 40 MiB, more than all of k3s itself takes.
const COLLECTOR: Collector = Collector { standard: Some(50), small: 25 };

/// kube-apiserver for `config`.
pub fn kube_apiserver(config: ControlPlaneConfig<'_>, paths: &Paths, found: &Components) -> Launch {
    let ControlPlaneConfig { network, api_server: address, published, .. } = config;
    let issuer = format!("https://kubernetes.default.svc.{}", network.cluster_domain);

    let mut flags = Flags::default();
    flags
        .set("storage-backend", "etcd3")
        .path("cert-dir", paths.tls("temporary-certs"))
        .set("allow-privileged", true)
        .set("enable-bootstrap-token-auth", true)
        .set("service-account-issuer", &issuer)
        .set("api-audiences", format!("{issuer},k3s"))
        // What it would name is its own port, which only loopback reaches.
        .set("service-account-jwks-uri", format!("https://{published}/openid/v1/jwks"))
        .path("service-account-signing-key-file", paths.tls("service.current.key"))
        .path("service-account-key-file", paths.tls("service.key"))
        .list("service-cluster-ip-range", &network.service_cidrs)
        .set("service-node-port-range", format!("{}-{}", network.node_ports.first, network.node_ports.last))
        .set("advertise-address", published.ip())
        // It would publish its own port, too; we publish the front's.
        .set("endpoint-reconciler-type", "none")
        // Webhooks and aggregated APIs are reached at their pods, which tunnels lead to and a server without a node or without a
        // default route reaches; the addresses of Services are known to kube-proxy alone. k3s leaves it off in the egress mode disabled.
        .set("enable-aggregator-routing", true)
        .set("secure-port", address.port())
        .set("bind-address", address.ip())
        .path("tls-cert-file", paths.tls("serving-kube-apiserver.crt"))
        .path("tls-private-key-file", paths.tls("serving-kube-apiserver.key"))
        .set("tls-cipher-suites", CIPHER_SUITES)
        .path("client-ca-file", paths.tls("client-ca.crt"))
        .path("kubelet-certificate-authority", paths.tls("server-ca.crt"))
        .path("kubelet-client-certificate", paths.tls("client-kube-apiserver.crt"))
        .path("kubelet-client-key", paths.tls("client-kube-apiserver.key"))
        .set("kubelet-preferred-address-types", network.preferred_address_types())
        .path("requestheader-client-ca-file", paths.tls("request-header-ca.crt"))
        .set("requestheader-allowed-names", "system:auth-proxy")
        .set("requestheader-extra-headers-prefix", "X-Remote-Extra-")
        .set("requestheader-group-headers", "X-Remote-Group")
        .set("requestheader-username-headers", "X-Remote-User")
        .path("proxy-client-cert-file", paths.tls("client-auth-proxy.crt"))
        .path("proxy-client-key-file", paths.tls("client-auth-proxy.key"))
        .set("enable-admission-plugins", "NodeRestriction")
        .set("profiling", false)
        .verbosity(config.verbosity);
    let egress = egress_selector(config, paths);
    if let Some(file) = &egress {
        flags.path("egress-selector-config-file", file.path.clone());
    }
    if let Some(file) = encryption_config(paths) {
        flags.path("encryption-provider-config", file).set("encryption-provider-config-automatic-reload", true);
    }
    let mut gates = vec![DOS_MITIGATION_OFF, NO_PEERS];
    let mut after = vec!["datastore".to_owned()];
    // It ends after kube-apiserver, whose shutdown waits for a store that answers.
    after.extend(config.datastore.programs().first().map(|&child| child.to_owned()));
    match config.datastore.reached() {
        Reached::Socket => {
            flags.set("etcd-servers", SOCKET);
        }
        Reached::Servers(etcd) => set_etcd(&mut flags, etcd),
        // Its own member alone, as in k3s: what a member cannot do, none of them can, or the member is being mended.
        Reached::Loopback => set_etcd(&mut flags, &own_member(paths)),
    }
    if let Datastore::Sqlite { .. } = config.datastore {
        gates.push(APISERVER_IDENTITY_OFF);
        // The datastore publishes what it commits and ends with us: nothing to probe every few seconds.
        flags.set("etcd-healthcheck-timeout", "10s");
    }
    flags.list("feature-gates", &gates);
    let user = &config.args.kube_apiserver;
    if user.value_of("authentication-config").is_none() {
        flags.set("anonymous-auth", false);
    }
    if user.value_of("authorization-config").is_none() {
        flags.set("authorization-mode", "Node,RBAC");
    }

    let ask = |path: &str| Probe::Https {
        address,
        path: path.to_owned(),
        ca: paths.tls("server-ca.crt"),
        identity: Some((paths.tls("client-supervisor.crt"), paths.tls("client-supervisor.key"))),
    };
    Launch {
        files: egress.into_iter().collect(),
        program: Program {
            args: flags.merged(user),
            env: COLLECTOR.env(config.profile),
            working_dir: Some(paths.server()),
            after,
            readiness: ask("/readyz"),
            // Not /readyz nor the datastore's own check: a store that is away for a while is no reason to restart.
            liveness: Some(Liveness {
                probe: ask("/livez?exclude=etcd"),
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(15),
                failures: 6,
                // A slow machine needs longer for its first start, and is not to begin it anew for a fault that only kine has.
                start: matches!(config.datastore, Datastore::Sql(_) | Datastore::Etcd(_)).then_some(START),
            }),
            stop: Stop { timeout: Duration::from_secs(20), ..Stop::default() },
            cpu_weight: 200,
            oom_score_adj: Some(-500),
            capabilities: capabilities::of_control_plane(),
            ..Program::new("kube-apiserver", found.path("kube-apiserver"))
        },
    }
}

/// How Secrets are encrypted, once that is set up. It counts whatever the flag says: without it, Secrets that it has encrypted are lost to
/// everybody.
fn encryption_config(paths: &Paths) -> Option<PathBuf> {
    Some(paths.encryption_config()).filter(|file| file.exists())
}

/// Sends what kube-apiserver dials within the cluster through the front, which knows the nodes' tunnels; as k3s.
fn egress_selector(config: ControlPlaneConfig<'_>, paths: &Paths) -> Option<File> {
    if config.egress_mode == EgressMode::Disabled {
        return None;
    }
    let selector = json!({
        "kind": "EgressSelectorConfiguration",
        "apiVersion": "apiserver.k8s.io/v1beta1",
        "egressSelections": [{
            "name": "cluster",
            "connection": {
                "proxyProtocol": "HTTPConnect",
                "transport": {"tcp": {
                    "url": format!("https://{}", config.front),
                    "tlsConfig": {
                        "caBundle": paths.tls("server-ca.crt"),
                        "clientKey": paths.tls("client-kube-apiserver.key"),
                        "clientCert": paths.tls("client-kube-apiserver.crt"),
                    },
                }},
            },
        }],
    });
    Some(File { path: paths.server().join("etc/egress-selector-config.yaml"), content: format!("{selector}\n") })
}

/// This server's member, as kube-apiserver reaches it.
fn own_member(paths: &Paths) -> Etcd {
    Etcd {
        endpoints: vec![EtcdEndpoint { tls: true, host: Ipv4Addr::LOCALHOST.to_string(), port: CLIENT_PORT }],
        ca_file: Some(paths.tls("etcd/server-ca.crt")),
        client: Some(ClientCertificate {
            certificate: paths.tls("etcd/client.crt"),
            key: paths.tls("etcd/client.key"),
        }),
    }
}

fn set_etcd(flags: &mut Flags, etcd: &Etcd) {
    flags.list("etcd-servers", &etcd.endpoints);
    if let Some(path) = &etcd.ca_file {
        flags.path("etcd-cafile", path.clone());
    }
    if let Some(ClientCertificate { certificate, key }) = &etcd.client {
        flags.path("etcd-certfile", certificate.clone()).path("etcd-keyfile", key.clone());
    }
}

#[cfg(test)]
mod tests {
    use k3s_config::resources::Profile;

    use super::*;
    use crate::testing::{config, found, paths};

    fn launch(flags: &[&str], advertise: &str) -> Launch {
        kube_apiserver(config(flags).control_plane(advertise.parse().unwrap(), Profile::Standard), &paths(), &found())
    }

    fn args(flags: &[&str]) -> Vec<String> {
        let launch = launch(flags, "10.0.0.2");
        launch.program.args.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn it_listens_on_loopback_above_the_front() {
        let args = args(&["--https-listen-port=7443"]);
        assert!(
            args.contains(&"--secure-port=7444".to_owned()) && args.contains(&"--bind-address=127.0.0.1".to_owned())
        );
    }

    #[test]
    fn what_it_dials_in_the_cluster_goes_through_the_front() {
        let file = |args: &[&str]| launch(args, "10.0.0.2").files.into_iter().next();
        let given = file(&["--https-listen-port=7443"]).unwrap();
        assert_eq!(given.path, paths().server().join("etc/egress-selector-config.yaml"));
        assert_eq!(
            given.content,
            concat!(
                r#"{"apiVersion":"apiserver.k8s.io/v1beta1","egressSelections":[{"connection":{"proxyProtocol":"HTTPConnect","#,
                r#""transport":{"tcp":{"tlsConfig":{"caBundle":"/data/server/tls/server-ca.crt","#,
                r#""clientCert":"/data/server/tls/client-kube-apiserver.crt","#,
                r#""clientKey":"/data/server/tls/client-kube-apiserver.key"},"url":"https://127.0.0.1:7443"}}},"#,
                r#""name":"cluster"}],"kind":"EgressSelectorConfiguration"}"#,
                "\n"
            )
        );
        assert!(args(&[]).contains(&format!("--egress-selector-config-file={}", given.path.display())));
        assert_eq!(file(&["--egress-selector-mode=disabled"]), None);
        assert!(!args(&["--egress-selector-mode=disabled"]).iter().any(|arg| arg.contains("egress")));
    }

    #[test]
    fn secrets_are_encrypted_once_that_is_set_up_and_not_beside_a_users_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path().join("run"));
        let args = |flags: &[&str]| {
            let config = config(flags);
            let launch =
                kube_apiserver(config.control_plane("10.0.0.2".parse().unwrap(), Profile::Standard), &paths, &found());
            let args = launch.program.args.into_iter().map(|arg| arg.into_string().unwrap());
            args.filter(|arg| arg.contains("encryption")).collect::<Vec<_>>()
        };
        let file = paths.encryption_config();
        assert!(args(&[]).is_empty());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "{}").unwrap();
        let reload = "--encryption-provider-config-automatic-reload=true".to_owned();
        assert_eq!(args(&[]), [format!("--encryption-provider-config={}", file.display()), reload]);
        let own = "--kube-apiserver-arg=encryption-provider-config=/etc/encryption.yaml";
        assert_eq!(args(&[own])[0], "--encryption-provider-config=/etc/encryption.yaml");
    }

    #[test]
    fn service_account_keys_are_where_clients_reach_the_api() {
        for (flags, advertise, expected) in [
            (&[][..], "10.0.0.2", "https://10.0.0.2:6443/openid/v1/jwks"),
            (&["--https-listen-port=7443"], "10.0.0.2", "https://10.0.0.2:7443/openid/v1/jwks"),
            (&["--advertise-port=443"], "192.0.2.1", "https://192.0.2.1:443/openid/v1/jwks"),
            (&[], "fd00::2", "https://[fd00::2]:6443/openid/v1/jwks"),
        ] {
            let launch = launch(flags, advertise);
            let expected = format!("--service-account-jwks-uri={expected}");
            assert!(launch.program.args.iter().any(|arg| *arg == *expected), "{expected}");
        }
    }

    #[test]
    fn webhooks_and_aggregated_apis_are_dialled_at_their_pods_whatever_the_egress_mode() {
        for mode in EgressMode::ALL {
            let mode = format!("--egress-selector-mode={}", mode.name());
            for flags in [&[&*mode][..], &[&mode, "--disable-agent"]] {
                assert!(args(flags).contains(&"--enable-aggregator-routing=true".to_owned()), "{flags:?}");
            }
        }
    }

    #[test]
    fn a_users_argument_takes_the_place_of_ours_or_stands_beside_it() {
        let args = args(&[
            "--kube-apiserver-arg=profiling=true",
            "--kube-apiserver-arg=enable-admission-plugins+=AlwaysPullImages",
        ]);
        let of = |name: &str| args.iter().filter(|arg| arg.starts_with(name)).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of("--profiling="), ["--profiling=true"]);
        let plugins = ["--enable-admission-plugins=NodeRestriction", "--enable-admission-plugins=AlwaysPullImages"];
        assert_eq!(of("--enable-admission-plugins="), plugins);
    }

    #[test]
    fn an_authentication_configuration_of_the_users_stands_alone() {
        let has_anonymous = |args: Vec<String>| args.iter().any(|arg| arg.starts_with("--anonymous-auth"));
        assert!(has_anonymous(args(&[])));
        assert!(!has_anonymous(args(&["--kube-apiserver-arg=authentication-config=/etc/auth.yaml"])));
    }

    #[test]
    fn a_database_is_asked_through_kine_which_ends_later() {
        let program = launch(&["--datastore-endpoint=postgres://k3s:hunter2@db/k3s"], "10.0.0.2").program;
        assert_eq!(program.after, ["datastore", "kine"]);
        assert!(program.args.contains(&"--etcd-servers=unix://kine.sock".into()));
        assert!(!format!("{program:?}").contains("hunter2"));
    }

    #[test]
    fn a_datastore_elsewhere_is_asked_directly_and_its_servers_are_counted() {
        let args = args(&[
            "--datastore-endpoint=https://10.0.0.1:2379,https://10.0.0.2:2379",
            "--datastore-cafile=/etc/ca.crt",
            "--datastore-certfile=/etc/client.crt",
            "--datastore-keyfile=/etc/client.key",
        ]);
        let of = |name: &str| args.iter().filter(|arg| arg.starts_with(name)).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(
            of("--etcd-"),
            [
                "--etcd-cafile=/etc/ca.crt",
                "--etcd-certfile=/etc/client.crt",
                "--etcd-keyfile=/etc/client.key",
                "--etcd-servers=https://10.0.0.1:2379,https://10.0.0.2:2379",
            ]
        );
        assert!(!of("--feature-gates=")[0].contains("APIServerIdentity"));
    }
}
