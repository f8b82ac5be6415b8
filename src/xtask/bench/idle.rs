//! `cargo xtask bench idle`: what the datastore of a cluster does when nobody does anything, beside others under the same programs.
//!
//! All clusters, each a node of its own, are left alone during the same minutes.

use std::time::Duration;

use anyhow::Result;
use cluster_tests::{Job, Node};

use super::api::{Api, pass};
use super::contender::{Contender, Script, stop};
use super::markdown::{Table, figure};
use super::store::Store;
use super::usage::{Processes, Usage};

/// How long the clusters are left alone before they count as idle: all that is done once after a start is done by then.
const SETTLE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the idle clusters are watched.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    let script = Script::prepare(Vec::new())?;
    // As the script's clusters, without cluster DNS.
    let mut contenders =
        vec![("k3s server, the whole process", "k3s", Contender::K3s { flags: "--disable=coredns".into() })];
    for (title, store) in [("k3s datastore serve", Store::K3s), ("kine", Store::Kine), ("etcd", Store::Etcd)] {
        contenders.push((title, store.name(), Contender::Script(&script, store)));
    }
    let mut clusters = Vec::new();
    for (_, _, contender) in &contenders {
        let node = contender.boot()?;
        let job = contender.start(&node);
        let api = Api::of(&node, contender.port());
        api.wait_until_reachable()?;
        api.poll("/readyz", 200, &[])?;
        clusters.push((node, job));
    }
    eprintln!("All clusters are up; {} s until they count as idle, then {} min.", SETTLE.as_secs(), args.minutes);
    pass(SETTLE);
    let before = processes(&clusters)?;
    pass(Duration::from_secs(60) * args.minutes);
    let after = processes(&clusters)?;
    for (node, job) in &clusters {
        stop(node, job);
    }

    let usages =
        (contenders.iter().zip(before).zip(after)).map(|(((_, program, _), before), after)| after.of(program, &before));
    let usages = usages.collect::<Result<Vec<_>>>()?;
    let minutes = f64::from(args.minutes);
    let mut table = Table::new("an idle cluster's datastore", contenders.iter().map(|(title, ..)| (*title).to_owned()));
    for (title, of) in [
        ("written to disk in a minute, kB", (|usage, minutes| usage.written / minutes) as fn(&Usage, f64) -> f64),
        ("wake-ups of its threads in a minute", |usage, minutes| usage.wakeups / minutes),
        ("processor time in a minute, ms", |usage, minutes| usage.cpu / minutes),
        ("memory (PSS), MiB", |usage, _| usage.memory),
    ] {
        table.row(title, usages.iter().map(|usage| figure(of(usage, minutes))));
    }
    println!("Mean over {} min, all at once.\n\n{table}", args.minutes);
    Ok(())
}

fn processes(clusters: &[(Node, Job)]) -> Result<Vec<Processes>> {
    clusters.iter().map(|(node, _)| Processes::below(&node.path("/proc"))).collect()
}
