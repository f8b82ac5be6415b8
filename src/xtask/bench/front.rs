//! `cargo xtask bench front`: kube-apiserver asked directly on loopback, and through port 6443.
//!
//! Both ways lead to the same process, and take turns in each phase. What the front itself takes is what our process takes more of on
//! the way through it: the datastore answers kube-apiserver in the same process.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Result;
use cluster_tests::{Network, Node};

use super::contender::{Contender, stop};
use super::figures::median;
use super::load::{self, Load, Outcome, Program};
use super::markdown::{Table, figure};
use super::usage::Processes;
use super::way::Way;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each phase is measured on each way; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// A phase of the load: its title in the table, and as the client spells it.
struct Phase(&'static str, &'static str);

const PHASES: [Phase; 5] = [
    Phase("get", "get --clients 32 --operations 8000"),
    Phase("get, 1 client", "get --operations 1000"),
    Phase("list 500", "list --clients 8 --operations 200"),
    Phase("update", "update --clients 32 --operations 2000"),
    Phase("events to 1000 watches", "watch --watchers 1000 --operations 20"),
];

/// What a phase took on one way.
#[derive(Debug, Clone, Copy)]
struct Measured {
    outcome: Outcome,
    /// Microseconds of processor time that our process took for an operation.
    cpu: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    load::build()?;
    let node = Node::boot(&Network::new(), "bench");
    let contender = Contender::K3s { flags: "--disable=coredns".into() };
    let job = contender.start(&node);
    node.wait_until_ready();
    let measured = measure(&node, args.rounds);
    stop(&node, &job);
    print!("{}", table(&measured?));
    Ok(())
}

/// By phase and way.
type Results = BTreeMap<(usize, Way), Vec<Measured>>;

fn measure(node: &Node, rounds: u32) -> Result<Results> {
    client(Way::Direct, node)?.run("create --clients 8 --operations 1000")?;
    // What was made, they find.
    let mut clients = [(Way::Direct, client(Way::Direct, node)?), (Way::Front, client(Way::Front, node)?)];
    let mut results = Results::new();
    for round in 1..=rounds {
        eprintln!("Round {round} of {rounds}:");
        for (index, Phase(title, words)) in PHASES.iter().enumerate() {
            for (way, client) in &mut clients {
                let before = own_cpu(node)?;
                let outcome = client.run(words)?;
                let measured = Measured { outcome, cpu: (own_cpu(node)? - before) * 1000.0 / outcome.operations };
                tell(title, *way, measured);
                results.entry((index, *way)).or_default().push(measured);
            }
            // None is always the one after the other.
            clients.reverse();
        }
    }
    Ok(results)
}

/// A client of the API, which has been answered.
fn client(way: Way, node: &Node) -> Result<Load> {
    let address = (Ipv4Addr::LOCALHOST, way.port());
    let mut client = Load::of_api(Program::Api, &node.wire(), node, address, "admin", &[])?;
    client.wait_until_answered()?;
    Ok(client)
}

impl Measured {
    fn rate(&self) -> f64 {
        self.outcome.operations / self.outcome.seconds
    }
}

/// Milliseconds of processor time that our process has taken.
fn own_cpu(node: &Node) -> Result<f64> {
    Ok(Processes::below(&node.path("/proc"))?.of("k3s", &Processes::default())?.cpu)
}

/// Tells a reader who waits how the phase went.
fn tell(title: &str, way: Way, measured: Measured) {
    let Outcome { p50_ms, p99_ms, .. } = measured.outcome;
    let (name, rate, cpu) = (way.name(), measured.rate(), measured.cpu);
    eprintln!("  {title:<24}{name:<8}{rate:>7.0}/s  p50 {p50_ms:>7.2} ms  p99 {p99_ms:>7.2} ms  own CPU {cpu:>5.0} µs");
}

fn table(results: &Results) -> Table {
    let columns = ["kube-apiserver directly", "through the front", "front : direct", "CPU of the front, µs each"];
    let mut table = Table::new("operations a second (p50 / p99 in ms)", columns.map(str::to_owned));
    for (index, Phase(title, _)) in PHASES.iter().enumerate() {
        let of = |way, part: fn(&Measured) -> f64| {
            median(results.get(&(index, way)).into_iter().flatten().map(part)).unwrap_or(f64::NAN)
        };
        let cell = |way| {
            let [rate, p50, p99] = [Measured::rate, |m: &Measured| m.outcome.p50_ms, |m: &Measured| m.outcome.p99_ms]
                .map(|part| of(way, part));
            format!("{} ({} / {})", figure(rate), figure(p50), figure(p99))
        };
        let ratio = of(Way::Front, Measured::rate) / of(Way::Direct, Measured::rate);
        let cpu = of(Way::Front, |m| m.cpu) - of(Way::Direct, |m| m.cpu);
        table.row(title, [cell(Way::Direct), cell(Way::Front), figure(ratio), figure(cpu)]);
    }
    table
}
