//! `cargo xtask bench tunnel`: what goes through our tunnel, and through remotedialer's.
//!
//! Each tunnel is two processes on loopback, without TLS, which is the same for both. They take turns in each load.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::figures::median;
use super::markdown::{Table, figure};
use crate::component::Component;
use crate::process::{cargo, stdout, succeed};
use crate::workspace;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each load is measured on each side; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// A load: its title in the table, its name, and what one unit of it is.
struct Load {
    title: &'static str,
    name: &'static str,
    unit: Unit,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    Mebibytes,
    Requests,
}

const LOADS: [Load; 5] = [
    Load { title: "from the node, MiB/s", name: "from-node", unit: Unit::Mebibytes },
    Load { title: "to the node, MiB/s", name: "to-node", unit: Unit::Mebibytes },
    Load { title: "from the node over 8 connections, MiB/s", name: "eight-from-node", unit: Unit::Mebibytes },
    Load { title: "requests/s over 1 connection (p50 / p99 in ms)", name: "requests-1", unit: Unit::Requests },
    Load { title: "requests/s over 32 connections (p50 / p99 in ms)", name: "requests-32", unit: Unit::Requests },
];

/// Whose tunnel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Remotedialer,
    K3s,
}

/// What `tunnel-load` prints.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Outcome {
    amount: f64,
    seconds: f64,
    cpu_seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// By load and side.
type Results = BTreeMap<(&'static str, Side), Vec<Outcome>>;

pub(crate) fn run(args: &Args) -> Result<()> {
    succeed(cargo().args(["build", "--release", "--quiet", "--package", "tunnel-tests", "--bins"]))?;
    let built = workspace::target().join("release");
    let remotedialer = Component::named("remotedialer")?.build()?.folder.join("remotedialer");
    let mut sides = [(Side::Remotedialer, remotedialer), (Side::K3s, built.join("tunnel-end"))];
    let mut results = Results::new();
    for round in 1..=args.rounds {
        eprintln!("Round {round} of {}:", args.rounds);
        for load in &LOADS {
            for (side, end) in &sides {
                let outcome = measure(&built.join("tunnel-load"), end, load.name)?;
                eprintln!("  {:<50}{side:<14?}{:>9.0}", load.title, load.unit.rate(&outcome));
                results.entry((load.name, *side)).or_default().push(outcome);
            }
            // None is always the one after the other.
            sides.reverse();
        }
    }
    print!("{}", table(&results));
    Ok(())
}

fn measure(program: &PathBuf, end: &PathBuf, load: &str) -> Result<Outcome> {
    let printed = stdout(Command::new(program).args([end, end]).arg(load))?;
    serde_json::from_slice(&printed).context("tunnel-load prints no outcome")
}

impl Unit {
    /// Units a second.
    fn rate(self, outcome: &Outcome) -> f64 {
        self.count(outcome) / outcome.seconds
    }

    /// Microseconds of processor time that both ends took for a unit.
    fn cpu(self, outcome: &Outcome) -> f64 {
        outcome.cpu_seconds * 1e6 / self.count(outcome)
    }

    fn count(self, outcome: &Outcome) -> f64 {
        match self {
            Self::Mebibytes => outcome.amount / f64::from(1 << 20),
            Self::Requests => outcome.amount,
        }
    }
}

fn table(results: &Results) -> Table {
    let columns = ["remotedialer", "k3s", "k3s : remotedialer", "CPU of both ends, µs each", "CPU ratio"];
    let mut table = Table::new("through a tunnel", columns.map(str::to_owned));
    for Load { title, name, unit } in &LOADS {
        let of = |side, part: &dyn Fn(&Outcome) -> f64| {
            median(results.get(&(*name, side)).into_iter().flatten().map(part)).unwrap_or(f64::NAN)
        };
        let [rate, cpu] = [Unit::rate, Unit::cpu].map(|part| move |side| of(side, &|outcome| part(*unit, outcome)));
        let cell = |side| match unit {
            Unit::Mebibytes => figure(rate(side)),
            Unit::Requests => {
                let [p50, p99] = [of(side, &|outcome| outcome.p50_ms), of(side, &|outcome| outcome.p99_ms)];
                format!("{} ({} / {})", figure(rate(side)), figure(p50), figure(p99))
            }
        };
        let of_ours = |part: &dyn Fn(Side) -> f64| figure(part(Side::K3s) / part(Side::Remotedialer));
        let both = format!("{} / {}", figure(cpu(Side::Remotedialer)), figure(cpu(Side::K3s)));
        table.row(title, [cell(Side::Remotedialer), cell(Side::K3s), of_ours(&rate), both, of_ours(&cpu)]);
    }
    table
}
