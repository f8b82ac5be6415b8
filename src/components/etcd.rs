//! etcd: this server's member of the cluster's own store, with its configuration in the file where k3s has it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k3s_config::{
    args::{ComponentArgs, Merge},
    datastore::ETCD,
    embedded_etcd::EmbeddedEtcd,
};
use k3s_supervise::program::{Liveness, Probe, Program};
use serde_json::{Value, json};

use crate::{
    Paths, capabilities,
    launch::{File, Launch},
    libexec::Components,
};

/// Where members answer kube-apiserver and other servers.
pub const CLIENT_PORT: u16 = 2379;
/// Where they answer each other.
const PEER_PORT: u16 = 2380;
/// Where they tell metrics and health.
const METRICS_PORT: u16 = 2381;
/// Where they answer clients of HTTP alone, which k3s keeps off the port of gRPC.
const HTTP_PORT: u16 = 2382;

/// A server's member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// Its name, which no other member has.
    pub name: String,
    /// Where other members and servers reach it.
    pub address: IpAddr,
    /// How it begins.
    pub start: EtcdStart,
    /// How it bears with its disk.
    pub timeouts: EtcdTimeouts,
}

/// How a member begins. One that has data goes on from it, unless it is told to be the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdStart {
    /// As the first of a new cluster.
    New,
    /// As the only one of a cluster that is filled, saved and thrown away: no write of it has to be durable.
    Scratch,
    /// As one more of a cluster of these members: each one's name and where the others reach it.
    Join(Vec<(String, String)>),
    /// From its data, as the only one of a cluster that had more.
    Alone,
}

/// How long members wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EtcdTimeouts {
    /// How often the leader is heard of.
    pub heartbeat: Duration,
    /// How long without it until another one stands for election.
    pub election: Duration,
}

impl EtcdStart {
    fn cluster_state(&self) -> &'static str {
        match self {
            Self::New | Self::Scratch => "new",
            Self::Join(_) | Self::Alone => "existing",
        }
    }
}

impl EtcdMember {
    /// Where the other members reach it.
    pub fn peer_url(&self) -> String {
        url("https", self.address, PEER_PORT)
    }

    fn initial_cluster(&self) -> String {
        let own = (self.name.clone(), self.peer_url());
        let others = match &self.start {
            EtcdStart::Join(members) => members.as_slice(),
            EtcdStart::New | EtcdStart::Scratch | EtcdStart::Alone => &[],
        };
        let others = others.iter().filter(|(name, _)| *name != self.name);
        others.chain([&own]).map(|(name, url)| format!("{name}={url}")).collect::<Vec<_>>().join(",")
    }
}

/// The etcd of `member`.
pub fn etcd(config: &EmbeddedEtcd, member: &EtcdMember, paths: &Paths, found: &Components) -> Launch {
    let file = config.dir.join("config");
    // etcd heeds no other argument beside it.
    let args = vec![format!("--config-file={}", file.display()).into()];
    let ask =
        |path: &str| Probe::Http { address: SocketAddr::from(([127, 0, 0, 1], METRICS_PORT)), path: path.to_owned() };
    Launch {
        files: vec![File { path: file, content: format!("{:#}\n", document(config, member, paths)) }],
        program: Program {
            args,
            working_dir: Some(paths.server()),
            // It runs and has opened its data. Whether the members agree on anything is for all of them to say, not for one.
            readiness: ask("/livez"),
            liveness: Some(Liveness {
                probe: ask("/livez"),
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(15),
                failures: 6,
                start: None,
            }),
            cpu_weight: 200,
            oom_score_adj: Some(-500),
            capabilities: capabilities::of_control_plane(),
            ..Program::new(ETCD, found.path(ETCD))
        },
    }
}

/// The configuration, with k3s' settings: YAML, as JSON is.
fn document(config: &EmbeddedEtcd, member: &EtcdMember, paths: &Paths) -> Value {
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let at = |scheme, port, addresses: &[IpAddr]| {
        addresses.iter().map(|address| url(scheme, *address, port)).collect::<Vec<_>>().join(",")
    };
    let own = [loopback, member.address];
    let metrics = if config.expose_metrics { &own[..] } else { &own[..1] };
    let security = |certificate: &str, authority: &str| {
        json!({
            "cert-file": paths.tls(&format!("etcd/{certificate}.crt")),
            "key-file": paths.tls(&format!("etcd/{certificate}.key")),
            "client-cert-auth": true,
            "trusted-ca-file": paths.tls(&format!("etcd/{authority}.crt")),
        })
    };
    let mut document: BTreeMap<String, Value> = [
        ("name", json!(member.name)),
        ("data-dir", json!(config.dir)),
        ("listen-client-urls", json!(at("https", CLIENT_PORT, &own))),
        ("listen-client-http-urls", json!(url("https", loopback, HTTP_PORT))),
        ("advertise-client-urls", json!(url("https", member.address, CLIENT_PORT))),
        ("listen-peer-urls", json!(at("https", PEER_PORT, &own))),
        ("initial-advertise-peer-urls", json!(member.peer_url())),
        ("listen-metrics-urls", json!(at("http", METRICS_PORT, metrics))),
        ("initial-cluster", json!(member.initial_cluster())),
        ("initial-cluster-state", json!(member.start.cluster_state())),
        ("client-transport-security", security("server-client", "server-ca")),
        ("peer-transport-security", security("peer-server-client", "peer-ca")),
        ("heartbeat-interval", json!(millis(member.timeouts.heartbeat))),
        ("election-timeout", json!(millis(member.timeouts.election))),
        ("snapshot-count", json!(10_000)),
        // A member whose data is not what the others have does not start.
        ("feature-gates", json!("InitialCorruptCheck=true")),
        ("watch-progress-notify-interval", json!(Duration::from_secs(5).as_nanos() as u64)),
        ("logger", json!("zap")),
        ("log-outputs", json!(["stderr"])),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    match member.start {
        EtcdStart::Alone => drop(document.insert("force-new-cluster".to_owned(), json!(true))),
        EtcdStart::Scratch => drop(document.insert("unsafe-no-fsync".to_owned(), json!(true))),
        EtcdStart::New | EtcdStart::Join(_) => {}
    }
    add(&mut document, &config.args);
    Value::Object(document.into_iter().collect())
}

/// Users' arguments take the place of ours, or are added to the end or the beginning of the text that is there.
fn add(document: &mut BTreeMap<String, Value>, args: &ComponentArgs) {
    for arg in args.iter() {
        let before = match document.get(&arg.name) {
            Some(Value::String(text)) => text.as_str(),
            _ => "",
        };
        let value = match arg.merge {
            Merge::Replace => typed(&arg.value),
            Merge::Append => json!(format!("{before}{}", arg.value)),
            Merge::Prepend => json!(format!("{}{before}", arg.value)),
        };
        document.insert(arg.name.clone(), value);
    }
}

/// As k3s reads them: durations, which etcd's file has in nanoseconds, numbers, truths, and else texts.
fn typed(text: &str) -> Value {
    if let Some(nanoseconds) = go_duration(text) {
        return json!(nanoseconds);
    }
    let number = text.parse::<i64>().map(Value::from);
    let truth = || text.parse::<bool>().map(Value::from);
    number.or_else(|_| truth()).unwrap_or_else(|_| json!(text))
}

/// Whole numbers with Go's units, such as `1h30m`.
fn go_duration(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 6] = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (mut rest, mut sum) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let (unit, each) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(each)?)?;
        rest = &after[unit.len()..];
    }
    (!text.is_empty()).then_some(sum)
}

fn url(scheme: &str, address: IpAddr, port: u16) -> String {
    format!("{scheme}://{}", SocketAddr::new(address, port))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use k3s_config::datastore::Datastore;

    use super::*;
    use crate::testing::{config, found, paths};

    fn member(start: EtcdStart) -> EtcdMember {
        let timeouts = EtcdTimeouts { heartbeat: Duration::from_millis(500), election: Duration::from_secs(5) };
        EtcdMember { name: "one-0123abcd".into(), address: [10, 0, 0, 1].into(), start, timeouts }
    }

    fn settings(flags: &[&str], start: EtcdStart) -> Value {
        let config = config(&[&["--cluster-init"], flags].concat());
        let Datastore::EmbeddedEtcd(etcd) = &config.datastore else { panic!("this is an etcd") };
        let launch = super::etcd(etcd, &member(start), &paths(), &found());
        assert_eq!(launch.program.args, [format!("--config-file={}", launch.files[0].path.display()).as_str()]);
        serde_json::from_str(&launch.files[0].content).unwrap()
    }

    #[test]
    fn a_first_member_is_reached_with_certificates_alone() {
        let first = settings(&[], EtcdStart::New);
        assert_eq!(first["listen-client-urls"], "https://127.0.0.1:2379,https://10.0.0.1:2379");
        assert_eq!(first["listen-peer-urls"], "https://127.0.0.1:2380,https://10.0.0.1:2380");
        assert_eq!(first["listen-metrics-urls"], "http://127.0.0.1:2381");
        assert_eq!(first["initial-cluster"], "one-0123abcd=https://10.0.0.1:2380");
        assert_eq!((&first["initial-cluster-state"], &first["election-timeout"]), (&json!("new"), &json!(5000)));
        for side in ["client-transport-security", "peer-transport-security"] {
            assert_eq!(first[side]["client-cert-auth"], true, "{side}");
        }
        assert_eq!(first["peer-transport-security"]["cert-file"], "/data/server/tls/etcd/peer-server-client.crt");
        let exposed = settings(&["--etcd-expose-metrics"], EtcdStart::New);
        assert_eq!(exposed["listen-metrics-urls"], "http://127.0.0.1:2381,http://10.0.0.1:2381");
    }

    #[test]
    fn a_further_member_names_all() {
        let others = [("two-1", "https://10.0.0.2:2380"), ("one-0123abcd", "https://10.0.0.1:2380")];
        let others = others.map(|(name, url)| (name.to_owned(), url.to_owned()));
        let joined = settings(&[], EtcdStart::Join(others.into()));
        assert_eq!(joined["initial-cluster"], "two-1=https://10.0.0.2:2380,one-0123abcd=https://10.0.0.1:2380");
        assert_eq!(joined["initial-cluster-state"], "existing");
        assert_eq!(settings(&[], EtcdStart::Alone)["force-new-cluster"], true);
    }

    #[test]
    fn what_is_thrown_away_need_not_be_durable() {
        let scratch = settings(&[], EtcdStart::Scratch);
        assert_eq!((&scratch["initial-cluster-state"], &scratch["unsafe-no-fsync"]), (&json!("new"), &json!(true)));
        assert_eq!(settings(&[], EtcdStart::New).get("unsafe-no-fsync"), None);
    }

    #[test]
    fn users_arguments_have_the_types_of_the_file() {
        let args = [
            "--etcd-arg=quota-backend-bytes=4294967296",
            "--etcd-arg=election-timeout=9000",
            "--etcd-arg=corrupt-check-time=1h30m",
            "--etcd-arg=pre-vote=false",
            "--etcd-arg=log-level=debug",
            "--etcd-arg=feature-gates+=,LeaseCheckpoint=true",
        ];
        let settings = settings(&args, EtcdStart::New);
        for (name, value) in [
            ("quota-backend-bytes", json!(4_294_967_296_u64)),
            ("election-timeout", json!(9000)),
            ("corrupt-check-time", json!(5_400_000_000_000_u64)),
            ("pre-vote", json!(false)),
            ("log-level", json!("debug")),
            ("feature-gates", json!("InitialCorruptCheck=true,LeaseCheckpoint=true")),
        ] {
            assert_eq!(settings[name], value, "{name}");
        }
    }
}
