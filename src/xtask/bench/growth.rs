//! `cargo xtask bench growth`: what a store costs when it holds much, at a tenth, a third and all of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cluster_tests::{Network, Node};

use super::api::pass;
use super::contender::stop;
use super::load::{self, Load};
use super::markdown::{Table, figure};
use super::store::{self, Store};
use super::usage::Processes;

/// Of the sizes asked for.
const PARTS: [u32; 3] = [10, 3, 1];
/// Where the data lies in the node.
const FOLDER: &str = "/var/store";
/// Pages of 500 objects before and after the compaction.
const PAGES: u32 = 200;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many objects.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..))]
    keys: u32,
    /// How many revisions of them all together.
    #[arg(long, default_value_t = 1_000_000)]
    revisions: u32,
    /// How large each is.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    value_bytes: u32,
    /// The stores to measure, one after the other.
    #[arg(long, value_name = "STORE", value_delimiter = ',', default_values = ["k3s"])]
    only: Vec<Store>,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// Data that has not shrunk for so long does not.
const STEADY: Duration = Duration::from_secs(20);
/// How often its size is looked at.
const POLL: Duration = Duration::from_secs(1);

/// The rows that one size fills.
type Rows = Vec<(&'static str, String)>;

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    load::build()?;
    let node = Node::boot(&Network::new(), "bench");
    for store in &args.only {
        let (mut heads, mut columns) = (Vec::new(), Vec::new());
        for part in PARTS {
            let (keys, revisions) = (args.keys / part, (args.revisions / part).max(args.keys / part));
            heads.push(format!("{} / {}", figure(keys.into()), figure(revisions.into())));
            columns.push(measure(*store, &node, keys, revisions, args.value_bytes)?);
        }
        let mut table = Table::new(&format!("{}: objects / revisions", store.version()?), heads);
        for row in 0..columns[0].len() {
            table.row(columns[0][row].0, columns.iter().map(|rows| rows[row].1.clone()));
        }
        println!("Values of {} bytes.\n\n{table}", args.value_bytes);
    }
    Ok(())
}

fn measure(store: Store, node: &Node, keys: u32, revisions: u32, value_bytes: u32) -> Result<Rows> {
    eprintln!("{}, {keys} objects, {revisions} revisions:", store.name());
    node.succeed(&format!("rm -rf {FOLDER}"));
    store.install(node, FOLDER)?;
    let job = Store::start(node);
    let mut load = store::load(node, value_bytes)?;
    load.wait_until_answered()?;
    let mut rows = Rows::new();
    let filling = Instant::now();
    load.run(&format!("create --clients 32 --operations {keys}"))?;
    load.run(&format!("update --clients 32 --operations {}", revisions - keys))?;
    let rate = f64::from(revisions) / filling.elapsed().as_secs_f64();
    drop(load);
    stop(node, &job);
    tell(&mut rows, "writes a second meanwhile, 32 clients", rate);
    tell(&mut rows, "size on disk, MB", size(node)?);

    let mut load = store::load(node, value_bytes)?;
    let starting = Instant::now();
    let job = Store::start(node);
    load.wait_until_answered()?;
    tell(&mut rows, "start until the first answer, s", starting.elapsed().as_secs_f64());
    // The client reads everything once before its first phase.
    lists(&mut load, &mut rows, "list 500, ms: p50 / p99", &format!("list --operations {PAGES}"))?;
    memory(store, node, &mut rows, "memory (PSS) then, MiB: all / anonymous")?;
    let seconds = lists(&mut load, &mut rows, "list 500 during compaction, ms: p50 / p99", "compact")?;
    tell(&mut rows, "compaction, s", seconds);
    lists(&mut load, &mut rows, "list 500 after it, ms: p50 / p99", &format!("list --operations {PAGES}"))?;
    memory(store, node, &mut rows, "memory (PSS) after it, MiB: all / anonymous")?;
    // A cluster always writes, and what a reader held up is made up for by the next commit.
    load.run("update --operations 10")?;
    drop(load);
    tell(&mut rows, "free space given back, s", shrunk(node)?);
    tell(&mut rows, "size on disk then, MB", size(node)?);
    stop(node, &job);
    Ok(rows)
}

/// Runs a phase that lists. Returns the seconds that it took.
fn lists(load: &mut Load, rows: &mut Rows, title: &'static str, phase: &str) -> Result<f64> {
    let outcome = load.run(phase)?;
    pair(rows, title, [outcome.p50_ms, outcome.p99_ms]);
    Ok(outcome.seconds)
}

fn memory(store: Store, node: &Node, rows: &mut Rows, title: &'static str) -> Result<()> {
    let usage = Processes::below(&node.path("/proc"))?.of(store.name(), &Processes::default())?;
    pair(rows, title, [usage.memory, usage.anonymous]);
    Ok(())
}

/// The seconds until the data takes no less space any more.
fn shrunk(node: &Node) -> Result<f64> {
    let started = Instant::now();
    let (mut smallest, mut last) = (size(node)?, Duration::ZERO);
    while started.elapsed() < last + STEADY {
        pass(POLL);
        let now = size(node)?;
        if now < smallest {
            (smallest, last) = (now, started.elapsed());
        }
    }
    Ok(last.as_secs_f64())
}

/// Of the data, in MB.
fn size(node: &Node) -> Result<f64> {
    let sum = node.succeed(&format!("du --summarize --block-size=1 {FOLDER}"));
    let bytes: f64 = sum.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).context("du said no size")?;
    Ok(bytes / 1e6)
}

fn pair(rows: &mut Rows, title: &'static str, [one, other]: [f64; 2]) {
    push(rows, title, format!("{} / {}", figure(one), figure(other)));
}

fn tell(rows: &mut Rows, title: &'static str, value: f64) {
    push(rows, title, figure(value));
}

/// Also tells a reader who waits.
fn push(rows: &mut Rows, title: &'static str, cell: String) {
    eprintln!("  {title}: {cell}");
    rows.push((title, cell));
}
