//! The etcd that servers run themselves, a member each.

use std::path::{Path, PathBuf};

use crate::{
    agent::ServerUrl,
    args::ComponentArgs,
    environment::Environment,
    error::Error,
    secret::Secret,
    token,
    values::{Given, Values},
};

/// A server's member of the cluster's etcd, and how it gets there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedEtcd {
    /// Its data: `<data-dir>/server/db/etcd`, where k3s has it too.
    pub dir: PathBuf,
    /// The cluster to join (`--server`) where there is no data yet; a new one (`--cluster-init`) if `None`.
    pub join: Option<JoinedServer>,
    /// Whether its metrics are shown at the node's address too, rather than on loopback alone (`--etcd-expose-metrics`).
    pub expose_metrics: bool,
    /// Users' arguments for it (`--etcd-arg`).
    pub args: ComponentArgs,
}

/// A server of the cluster that is to be joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedServer {
    /// Where it answers.
    pub url: ServerUrl,
    /// The whole token to join with; the one that this server was set up with if `None`.
    pub token: Option<Secret>,
}

/// What a configuration of one member is without.
const FLAGS: [&str; 2] = ["etcd-arg", "etcd-expose-metrics"];

/// What members, servers and kube-apiserver have agreed on between themselves.
const RESERVED: [&str; 16] = [
    "advertise-client-urls",
    "client-transport-security",
    "config-file",
    "data-dir",
    "force-new-cluster",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "listen-client-http-urls",
    "listen-client-urls",
    "listen-metrics-urls",
    "listen-peer-urls",
    "name",
    "peer-transport-security",
    "unsafe-no-fsync",
    "wal-dir",
];

impl EmbeddedEtcd {
    /// `None` where nobody asks for one, and no server of this data directory has been a member.
    pub(crate) fn from_values(
        values: &Values,
        data_dir: &Path,
        environment: &Environment,
    ) -> Result<Option<Self>, Error> {
        let dir = data_dir.join("server/db/etcd");
        let server = values.given("server");
        // As k3s: who has been a member stays one.
        if !values.is_on("cluster-init") && server.is_none() && !dir.join("member/wal").is_dir() {
            return Ok(None);
        }
        let join = server.map(|server| JoinedServer::from_values(server, values, environment)).transpose()?;
        let args = values.component_args("etcd-arg")?;
        if let Some(name) = RESERVED.iter().find(|name| args.value_of(name).is_some())
            && let Some(given) = values.given("etcd-arg")
        {
            let instead = if *name == "listen-metrics-urls" { "use --etcd-expose-metrics" } else { "leave it out" };
            return Err(given.invalid(format!("{name} is settled between etcd's members and k3s; {instead}")));
        }
        let expose_metrics = values.is_on("etcd-expose-metrics");
        Ok(Some(Self { dir, join, expose_metrics, args }))
    }

    /// Why there cannot be both this and the store at an `endpoint`.
    pub(crate) fn refuse_endpoint(&self, values: &Values, endpoint: &Given) -> Error {
        let asked = ["server", "cluster-init"].into_iter().filter_map(|name| values.given(name));
        match asked.into_iter().find(|given| given.text != "false") {
            Some(given) => given.invalid(
                "the servers of a cluster keep its state in an etcd of their own or at --datastore-endpoint; keep one of them",
            ),
            None => endpoint.invalid(format!(
                "this server is a member of its cluster's own etcd, whose data is in {}; leave it out, or move that folder away",
                self.dir.display()
            )),
        }
    }
}

impl JoinedServer {
    fn from_values(server: &Given, values: &Values, environment: &Environment) -> Result<Self, Error> {
        let token = token::find(values, "token", "token-file", environment)?;
        let token = token.as_ref().map(token::joining).transpose()?;
        Ok(Self { url: server.parse(str::parse)?, token })
    }
}

/// The server of a cluster whose other servers have the members of etcd (`--disable-etcd`), by which they are found.
pub(crate) fn of_others(
    values: &Values,
    data_dir: &Path,
    environment: &Environment,
) -> Result<Option<JoinedServer>, Error> {
    let Some(disabled) = values.given("disable-etcd").filter(|given| given.text == "true") else { return Ok(None) };
    let asked = |name| values.given(name).filter(|given: &&Given| given.text != "false");
    if let Some(other) = asked("disable-apiserver") {
        return Err(other.invalid("a server runs kube-apiserver or etcd, or both; leave out this or --disable-etcd"));
    }
    if let Some(other) = ["cluster-init", "datastore-endpoint"].into_iter().find_map(asked) {
        return Err(other
            .invalid("a server with --disable-etcd uses the etcd of the cluster's other servers; keep one of them"));
    }
    let Some(server) = values.given("server") else {
        return Err(disabled.invalid("it needs a server that runs etcd; give --server=https://HOST:6443 of one too"));
    };
    let dir = data_dir.join("server/db/etcd");
    if dir.join("member/wal").is_dir() {
        return Err(disabled.invalid(format!(
            "this server is a member of its cluster's etcd, whose data is in {}; delete its node, and move that folder away",
            dir.display()
        )));
    }
    JoinedServer::from_values(server, values, environment).map(Some)
}

/// Refuses a server without kube-apiserver (`--disable-apiserver`) that runs no etcd either; `endpoint` is where else its store is.
pub(crate) fn refuse_idle(values: &Values, endpoint: Option<&Given>) -> Result<(), Error> {
    let Some(disabled) = values.given("disable-apiserver").filter(|given| given.text == "true") else { return Ok(()) };
    Err(match endpoint {
        Some(endpoint) => endpoint.invalid(
            "a server with --disable-apiserver is there for the etcd that it runs itself; keep one of them",
        ),
        None => disabled.invalid(
            "it is for a server that runs etcd; give --cluster-init too, or --server=https://HOST:6443 of a server to join",
        ),
    })
}

/// Refuses what only an embedded etcd could heed.
pub(crate) fn refuse_flags(values: &Values) -> Result<(), Error> {
    let given = FLAGS.into_iter().find_map(|name| values.given(name)).filter(|given| given.text != "false");
    given.map_or(Ok(()), |given| {
        Err(given.invalid("it is for the embedded etcd, which --cluster-init or --server starts; leave it out"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{datastore::Datastore, test_host::Host};

    fn etcd(host: &Host, args: &[&str]) -> Result<Option<EmbeddedEtcd>, String> {
        let (config, _) = host.server(args).map_err(|error| host.anonymous(error))?;
        Ok(match config.datastore {
            Datastore::EmbeddedEtcd(etcd) => Some(etcd),
            _ => None,
        })
    }

    #[test]
    fn a_first_server_begins_a_cluster_and_others_join_it() {
        let host = Host::new();
        assert_eq!(etcd(&host, &[]), Ok(None));
        let first = etcd(&host, &["--cluster-init", "--etcd-arg=quota-backend-bytes=4294967296"]).unwrap().unwrap();
        assert_eq!((first.dir, first.join), ("/var/lib/rancher/k3s/server/db/etcd".into(), None));
        assert_eq!(first.args.value_of("quota-backend-bytes"), Some("4294967296"));
        let second = etcd(&host, &["--server=https://10.0.0.1:6443", "--token=K10::server:pw"]).unwrap().unwrap();
        let joined = second.join.expect("a server to join");
        assert_eq!(joined.url.to_string(), "https://10.0.0.1:6443");
        assert_eq!(joined.token.as_ref().map(Secret::expose), Some("K10::server:pw"));
    }

    #[test]
    fn a_server_without_etcd_names_one_that_has_it() {
        let host = Host::new();
        let (config, _) =
            host.server(&["--disable-etcd", "--server=https://10.0.0.1:6443", "--token=pw"]).expect("it is valid");
        let Datastore::OtherMembers(joined) = &config.datastore else { panic!("{:?}", config.datastore) };
        assert_eq!(joined.url.to_string(), "https://10.0.0.1:6443");
        assert!(config.datastore.is_shared() && config.datastore.on_disk().is_none());
        for (args, expected) in [
            (&[][..], "--disable-etcd: it needs a server that runs etcd"),
            (&["--cluster-init"], "--cluster-init: a server with --disable-etcd uses the etcd"),
            (&["--server=https://h:6443", "--etcd-arg=a=b"], "--etcd-arg: it is for the embedded etcd"),
            (&["--server=https://h:6443", "--etcd-s3"], "--etcd-s3: the servers that run etcd take"),
        ] {
            let error = host.server(&[&["--disable-etcd"], args].concat()).expect_err("it is refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let member = Host::new().file("server/db/etcd/member/wal/0.wal", "");
        let args = ["--data-dir=.", "--disable-etcd", "--server=https://h:6443"];
        let error = member.server(&args).expect_err("it has a member").to_string();
        assert!(error.contains("is a member of its cluster's etcd"), "{error}");
    }

    #[test]
    fn a_server_without_kube_apiserver_runs_etcd() {
        let host = Host::new();
        let idle = ["--disable-apiserver", "--disable-controller-manager", "--disable-scheduler"];
        let of = |args: &[&str]| host.server(&[&idle, args].concat());
        for args in [&["--cluster-init"][..], &["--server=https://10.0.0.1:6443", "--token=pw"]] {
            let (config, _) = of(args).expect("it is valid");
            assert!(config.disabled.apiserver && matches!(config.datastore, Datastore::EmbeddedEtcd(_)));
            assert_eq!((config.https_listen_port, config.apiserver_port()), (6443, 6444));
        }
        let (config, _) = of(&["--cluster-init", "--lb-server-port=7444"]).expect("it is valid");
        assert_eq!(config.apiserver_port(), 7444);
        for (args, expected) in [
            (&[][..], "--disable-apiserver: it is for a server that runs etcd; give --cluster-init too, or --server="),
            (
                &["--datastore-endpoint=sqlite:///srv/state.db"],
                "--datastore-endpoint: a server with --disable-apiserver",
            ),
            (&["--datastore-endpoint=https://db:2379"], "--datastore-endpoint: a server with --disable-apiserver"),
            (
                &["--datastore-endpoint=postgres://k3s@db/k3s"],
                "--datastore-endpoint: a server with --disable-apiserver",
            ),
            (
                &["--disable-etcd", "--server=https://h:6443"],
                "--disable-apiserver: a server runs kube-apiserver or etcd",
            ),
            (&["--cluster-init", "--lb-server-port=6443"], "--lb-server-port: 6443 is the server's"),
        ] {
            let error = of(args).expect_err("it is refused");
            assert!(error.to_string().starts_with(expected), "{error}");
            assert_eq!(u8::from(error.exit_code()), 64, "{args:?}");
        }
        let member = Host::new().file("server/db/etcd/member/wal/0.wal", "");
        assert!(member.server(&["--data-dir=.", "--disable-apiserver"]).is_ok(), "who has been a member stays one");
    }

    #[test]
    fn who_has_been_a_member_stays_one() {
        let host = Host::new().file("server/db/etcd/member/wal/0.wal", "");
        let (config, _) = host.server(&["--data-dir=."]).unwrap();
        assert!(matches!(config.datastore, Datastore::EmbeddedEtcd(_)) && config.datastore.is_shared());
        let refused = etcd(&host, &["--data-dir=.", "--datastore-endpoint=https://10.0.0.1:2379"]).unwrap_err();
        assert_eq!(
            refused,
            "--datastore-endpoint: this server is a member of its cluster's own etcd, whose data is in DIR/./server/db/etcd; leave it out, or move that folder away"
        );
    }

    #[test]
    fn what_does_not_go_together() {
        let cases: [(&[&str], &str); 5] = [
            (
                &["--cluster-init", "--datastore-endpoint=https://10.0.0.1:2379"],
                "--cluster-init: the servers of a cluster keep its state in an etcd of their own or at --datastore-endpoint; keep one of them",
            ),
            (
                &["--etcd-expose-metrics"],
                "--etcd-expose-metrics: it is for the embedded etcd, which --cluster-init or --server starts; leave it out",
            ),
            (
                &["--cluster-init", "--etcd-arg=name=me"],
                "--etcd-arg: name is settled between etcd's members and k3s; leave it out",
            ),
            (
                &["--cluster-init", "--etcd-arg=listen-metrics-urls=http://0.0.0.0:2381"],
                "--etcd-arg: listen-metrics-urls is settled between etcd's members and k3s; use --etcd-expose-metrics",
            ),
            (
                &["--server=http://10.0.0.1"],
                "--server: `http://10.0.0.1` is not a server's address; write it as https://HOST:6443",
            ),
        ];
        for (args, sentence) in cases {
            assert_eq!(etcd(&Host::new(), args), Err(sentence.to_owned()), "{args:?}");
        }
    }
}
