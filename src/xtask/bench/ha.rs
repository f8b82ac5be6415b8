//! `cargo xtask bench ha`: for how long a client on an agent cannot write when something fails, and what a server's programs hold.
//!
//! The client goes by its agent's balancer, as kubelet does, writes one object after another, and asks at the end for everything that was
//! acknowledged to it: what is lost makes the bench fail.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::ValueEnum as _;
use cluster_tests::{Cluster, Database, Node, Store, Writer};

use super::{
    api::pass,
    markdown::{Table, figure},
    usage::Processes,
};
use crate::system_packages;

/// Where an agent's clients reach the API.
const BALANCER: u16 = 6444;
/// How long an agent is cut off from the one server that there is.
const CUT: Duration = Duration::from_secs(10);
/// How long a cluster is left alone before memory is looked at.
const SETTLE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The stores, with commas between them; all if none is given.
    #[arg(long, value_name = "STORE", value_delimiter = ',')]
    only: Vec<Side>,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    Sqlite,
    Postgresql,
    Mariadb,
    Etcd,
}

/// What happens to a cluster, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    ServerKilled,
    ServerWithoutPower,
    StoreKilled,
    CutFromStore,
    CutFromServer,
    AllOff,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    let sides = if args.only.is_empty() { Side::value_variants() } else { &args.only };
    if sides.iter().any(|side| side.store().database().is_some()) {
        system_packages::ensure_each(&system_packages::DATABASES)?;
    }
    let measured = sides.iter().map(|side| side.measure()).collect::<Result<Vec<_>>>()?;
    let columns = || sides.iter().map(|side| side.title().to_owned());
    let mut outages = Table::new("seconds without a write, for a client on an agent", columns());
    for failure in Failure::ALL {
        let of = |measured: &Measured| measured.outages.get(&failure).map_or(f64::NAN, Duration::as_secs_f64);
        outages.row(failure.title(), measured.iter().map(|measured| figure(of(measured))));
    }
    println!("{outages}");
    let mut memory = Table::new("memory (PSS) of a server without a node, MiB", columns());
    for program in PROGRAMS {
        let of = |measured: &Measured| measured.memory.get(program).copied().unwrap_or(f64::NAN);
        memory.row(program, measured.iter().map(|measured| figure(of(measured))));
    }
    println!("{memory}");
    Ok(())
}

/// The rows of the table of memory.
const PROGRAMS: [&str; 7] =
    ["k3s", "etcd", "kine", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "= everything"];

struct Measured {
    outages: BTreeMap<Failure, Duration>,
    /// MiB by program.
    memory: BTreeMap<String, f64>,
}

impl Side {
    fn store(self) -> Store {
        match self {
            Self::Sqlite => Store::Sqlite,
            Self::Postgresql => Store::Database(Database::Postgres),
            Self::Mariadb => Store::Database(Database::MariaDb),
            Self::Etcd => Store::EmbeddedEtcd,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite, one server",
            Self::Postgresql => "PostgreSQL, two",
            Self::Mariadb => "MariaDB, two",
            Self::Etcd => "embedded etcd, three",
        }
    }

    fn measure(self) -> Result<Measured> {
        eprintln!("{}:", self.title());
        let mut cluster = Cluster::start(self.store(), &["agent"]);
        pass(SETTLE);
        let processes = Processes::below(&cluster.servers[0].path("/proc"))?;
        let usages = processes.since(&Processes::default());
        let memory = usages.into_iter().map(|(program, usage)| (program.to_owned(), usage.memory)).collect();
        let mut outages = BTreeMap::new();
        for failure in Failure::ALL {
            if let Some(outage) = failure.measure(&mut cluster) {
                eprintln!("  {}: {:.1} s", failure.title(), outage.as_secs_f64());
                outages.insert(failure, outage);
            }
        }
        Ok(Measured { outages, memory })
    }
}

impl Failure {
    const ALL: [Self; 6] = [
        Self::ServerKilled,
        Self::ServerWithoutPower,
        Self::StoreKilled,
        Self::CutFromStore,
        Self::CutFromServer,
        Self::AllOff,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::ServerKilled => "k3s of the server in use killed, started at once",
            Self::ServerWithoutPower => "the server in use without power (one alone: started at once)",
            Self::StoreKilled => "the database, or the leading member of etcd, killed and started at once",
            Self::CutFromStore => "the server in use cut off from its store",
            Self::CutFromServer => "the agent cut off from the server in use (one alone: for 10 s)",
            Self::AllOff => "everything off, and on",
        }
    }

    /// How long it keeps a client from writing; `None` where the store knows no such failure.
    fn measure(self, cluster: &mut Cluster) -> Option<Duration> {
        let used = cluster.used_by(&cluster.agents[0]);
        let is_alone = cluster.servers.len() == 1;
        if is_alone && matches!(self, Self::StoreKilled | Self::CutFromStore) {
            return None;
        }
        let writer = Writer::start(&cluster.agents[0], BALANCER, &cluster.servers[0]);
        let outage = match self {
            Self::ServerKilled => writer.through(|| {
                cluster.servers[used].succeed("pkill -9 -x k3s");
                cluster.servers[used].start_k3s("");
            }),
            Self::ServerWithoutPower => {
                let Cluster { servers, agents, network, .. } = cluster;
                let (server, agent) = (&mut servers[used], &agents[0]);
                writer.through(|| {
                    // No kernel closes its connections.
                    agent.block(server);
                    server.crash();
                    if is_alone {
                        server.start();
                        network.unblock();
                        server.start_k3s("");
                    }
                })
            }
            Self::StoreKilled => writer.through(|| match (cluster.store.database(), &cluster.database) {
                (Some(database), Some(node)) => {
                    database.kill(node);
                    database.start(node);
                }
                _ => {
                    let leader = leader(cluster);
                    leader.kill(leader.components()["etcd"]);
                }
            }),
            Self::CutFromStore => writer.through(|| cluster.cut_off_from_store(used)),
            Self::CutFromServer => writer.through(|| {
                cluster.agents[0].block(&cluster.servers[used]);
                if is_alone {
                    pass(CUT);
                    cluster.network.unblock();
                }
            }),
            Self::AllOff => {
                let began = Instant::now();
                cluster.restart();
                let again = Writer::start(&cluster.agents[0], BALANCER, &cluster.servers[0]);
                let outage = began.elapsed();
                again.stop(&cluster.servers[0]);
                outage
            }
        };
        cluster.network.unblock();
        if self == Self::ServerWithoutPower && !is_alone {
            cluster.servers[used].start();
            cluster.servers[used].start_k3s("");
        }
        cluster.wait_until_whole();
        writer.stop(&cluster.servers[0]);
        Some(outage)
    }
}

/// The server whose member of etcd leads.
fn leader(cluster: &Cluster) -> &Node {
    let status = cluster.servers[0].wait_for_status("the leader is");
    let leads = |server: &&Node| status.contains(&format!("the leader is {}-", server.name()));
    cluster.servers.iter().find(leads).unwrap_or(&cluster.servers[0])
}
