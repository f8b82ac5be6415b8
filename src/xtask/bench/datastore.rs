//! `cargo xtask bench datastore`: `k3s datastore serve` beside etcd and kine, under the same load from one client program.
//!
//! The stores take turns in one run. Each trial is a new process on an empty file system of a disk of its own, and goes through the same
//! phases; a median is over the rounds.

mod disk;
mod results;

use anyhow::Result;
use cluster_tests::{Network, Node};

use super::contender::stop;
use super::load::{self, Outcome};
use super::store::{self, Store};
use super::usage::{Processes, Usage};
use disk::{Disk, FileSystem, MOUNT};
use results::{Measured, Results, Trial};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each store is measured; the tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The stores to measure.
    #[arg(long, value_name = "STORE", value_delimiter = ',', default_values = ["k3s", "etcd", "kine"])]
    only: Vec<Store>,
    /// How many objects; the phases are as long as it is large.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1000..))]
    keys: u32,
    /// How large they are.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    value_bytes: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// A phase of the load: its title in the tables, as the client spells it, and its operations in percent of the objects.
struct Phase(&'static str, &'static str, u32);

const PHASES: [Phase; 11] = [
    Phase("create, 1 client", "create", 25),
    Phase("create", "create --clients 32", 100),
    Phase("guarded update", "update --clients 32", 200),
    Phase("get", "get --clients 32", 400),
    Phase("list 500", "list --clients 32", 10),
    Phase("count", "count --clients 32", 200),
    Phase("events to 8 watchers", "watch --watchers 8 --clients 8", 100),
    Phase("events to 100 watchers", "watch --watchers 100 --clients 8", 25),
    // Slow enough for each store to keep up, so that their delays are of the same load.
    Phase("events to 100 watchers, 200 changes/s", "watch --watchers 100 --clients 32 --rate 200", 25),
    Phase("as of an API server", "mixed --clients 32", 200),
    Phase("guarded delete", "delete --clients 32", 100),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    load::build()?;
    let node = Node::boot(&Network::new(), "bench");
    let disk = Disk::create(&node);
    let mut stores = args.only.clone();
    stores.sort_unstable();
    stores.dedup();
    let mut results = Results::new(&stores)?;
    for round in 1..=args.rounds {
        for store in &stores {
            eprintln!("Round {round} of {}, {}:", args.rounds, store.name());
            results.add(*store, measure(*store, &node, &disk, args)?);
        }
        // None is always the one after another.
        stores.rotate_right(1);
    }
    print!("{} objects of {} bytes, medians of {} rounds; {results}", args.keys, args.value_bytes, args.rounds);
    Ok(())
}

/// One round of one store.
fn measure(store: Store, node: &Node, disk: &Disk<'_>, args: &Args) -> Result<Trial> {
    let files = disk.format()?;
    store.install(node, MOUNT)?;
    let job = Store::start(node);
    let trial = load_with_phases(store, node, &files, args).inspect_err(|_| {
        eprintln!("{}", node.succeed(&format!("tail -n 40 {}", job.output.display())));
    });
    stop(node, &job);
    Ok(Trial { written: files.seal()?, ..trial? })
}

fn load_with_phases(store: Store, node: &Node, files: &FileSystem<'_>, args: &Args) -> Result<Trial> {
    let mut load = store::load(node, args.value_bytes)?;
    load.wait_until_answered()?;
    let mut trial = Trial::default();
    for Phase(title, words, percent) in PHASES {
        let before = (files.sync()?, server(store, node)?.cpu, load.usage()?.cpu);
        let outcome = load.run(&format!("{words} --operations {}", args.keys * percent / 100))?;
        let (written, usage, client) = (files.sync()? - before.0, server(store, node)?, load.usage()?.cpu);
        tell(title, outcome, [usage.cpu - before.1, client - before.2], written);
        trial.memory = trial.memory.max(usage.memory);
        (trial.server_cpu, trial.client_cpu) = (usage.cpu / 1000.0, client / 1000.0);
        trial.phases.push((title, Measured { outcome, written }));
    }
    Ok(trial)
}

fn server(store: Store, node: &Node) -> Result<Usage> {
    Processes::below(&node.path("/proc"))?.of(store.name(), &Processes::default())
}

/// Tells a reader who waits how the phase went.
fn tell(title: &str, outcome: Outcome, cpu: [f64; 2], written: f64) {
    let Outcome { operations, writes, seconds, p50_ms, p99_ms, .. } = outcome;
    let [server, client] = cpu.map(|ms| ms * 1000.0 / operations);
    let rate = operations / seconds;
    eprint!(
        "  {title:<24}{rate:>8.0}/s  p50 {p50_ms:>7.2} ms  p99 {p99_ms:>7.2} ms  CPU {server:>5.0} + {client:>4.0} µs"
    );
    if writes > 0.0 {
        eprint!("  {:>6.0} B a write", written / writes);
    }
    eprintln!();
}
