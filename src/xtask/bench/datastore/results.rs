//! What all trials showed, as the tables of the README.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result};

use crate::bench::figures::median;
use crate::bench::load::Outcome;
use crate::bench::markdown::{Table, figure};
use crate::bench::store::Store;

/// A phase of one trial.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) outcome: Outcome,
    /// Bytes that reached the disk.
    pub(super) written: f64,
}

/// One round of one store.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// By title.
    pub(super) phases: Vec<(&'static str, Measured)>,
    /// PSS in MiB, the largest after a phase.
    pub(super) memory: f64,
    /// Seconds of processor time that the store took.
    pub(super) server_cpu: f64,
    /// Seconds of processor time that the client took.
    pub(super) client_cpu: f64,
    /// Bytes that reached the disk, from the first to a clean stop.
    pub(super) written: f64,
}

/// All trials. [`Display`](fmt::Display) writes their medians.
pub(super) struct Results {
    machine: String,
    columns: Vec<(Store, String)>,
    trials: BTreeMap<Store, Vec<Trial>>,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.outcome.operations / self.outcome.seconds
    }

    fn bytes_per_write(&self) -> f64 {
        self.written / self.outcome.writes
    }
}

impl Trial {
    fn writes(&self) -> f64 {
        self.phases.iter().map(|(_, measured)| measured.outcome.writes).sum()
    }
}

impl Results {
    pub(super) fn new(stores: &[Store]) -> Result<Self> {
        let columns = stores.iter().map(|store| Ok((*store, store.version()?))).collect::<Result<_>>()?;
        Ok(Self { machine: machine()?, columns, trials: BTreeMap::new() })
    }

    pub(super) fn add(&mut self, store: Store, trial: Trial) {
        self.trials.entry(store).or_default().push(trial);
    }

    fn median(&self, store: Store, of: impl Fn(&Trial) -> f64) -> f64 {
        median(self.trials.get(&store).into_iter().flatten().map(of)).unwrap_or(f64::NAN)
    }

    fn phase(&self, phase: usize, store: Store, of: impl Fn(&Measured) -> f64) -> f64 {
        self.median(store, |trial| trial.phases.get(phase).map_or(f64::NAN, |(_, measured)| of(measured)))
    }

    fn table(&self, title: &str) -> Table {
        let stores = self.columns.iter().map(|(_, name)| name.clone());
        Table::new(title, stores.chain(self.peers().map(|peer| format!("k3s : {}", peer.name()))))
    }

    /// What k3s is compared with.
    fn peers(&self) -> impl Iterator<Item = Store> {
        let stores = self.columns.iter().map(|(store, _)| *store);
        let compared = stores.clone().any(|store| store == Store::K3s);
        stores.filter(move |store| compared && *store != Store::K3s)
    }

    /// A row of the medians of a quantity, with ratios; `more` is said of a store beside its figure.
    fn row(&self, table: &mut Table, title: &str, of: impl Fn(Store) -> f64, more: impl Fn(Store) -> String) {
        let figures = self.columns.iter().map(|(store, _)| format!("{}{}", figure(of(*store)), more(*store)));
        let ratios = self.peers().map(|peer| figure(of(Store::K3s) / of(peer)));
        table.row(title, figures.chain(ratios).collect::<Vec<_>>());
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(sample) = self.trials.values().flatten().next() else { return Ok(()) };
        let titles = || sample.phases.iter().enumerate().map(|(phase, (title, measured))| (phase, *title, measured));
        let nothing = |_| String::new();

        let mut rates = self.table("operations a second (p50 / p99 in ms)");
        for (phase, title, _) in titles() {
            let latency = |store| {
                let p50 = self.phase(phase, store, |measured| measured.outcome.p50_ms);
                let p99 = self.phase(phase, store, |measured| measured.outcome.p99_ms);
                format!(" ({} / {})", figure(p50), figure(p99))
            };
            self.row(&mut rates, title, |store| self.phase(phase, store, Measured::rate), latency);
        }
        let mut bytes = self.table("bytes written to the disk for each acknowledged write");
        for (phase, title, _) in titles().filter(|(_, _, measured)| measured.outcome.writes > 0.0) {
            self.row(&mut bytes, title, |store| self.phase(phase, store, Measured::bytes_per_write), nothing);
        }
        let overall = |store| self.median(store, |trial| trial.written / trial.writes());
        self.row(&mut bytes, "all, with start and stop", overall, nothing);

        let mut costs = self.table("all phases together");
        let durability = self.columns.iter().map(|(store, _)| store.durability().to_owned());
        let blank = self.peers().map(|_| String::new());
        costs.row("acknowledged is on the disk", durability.chain(blank).collect::<Vec<_>>());
        for (title, of) in [
            ("memory (PSS), MiB", (|trial| trial.memory) as fn(&Trial) -> f64),
            ("processor time of the store, s", |trial| trial.server_cpu),
            ("processor time of the client, s", |trial| trial.client_cpu),
        ] {
            self.row(&mut costs, title, |store| self.median(store, of), nothing);
        }
        writeln!(f, "{} before, {} after.\n", self.machine, load_average())?;
        write!(f, "{rates}\n{bytes}\n{costs}")
    }
}

/// What the figures depend on.
fn machine() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("Cannot read the kernel's version")?;
    let processors = std::thread::available_parallelism().context("Cannot count processors")?;
    Ok(format!("{processors} processors, Linux {}; load average {}", kernel.trim(), load_average()))
}

/// Over a minute.
fn load_average() -> String {
    let averages = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_show_medians_and_ratios() {
        let columns = [Store::K3s, Store::Etcd].map(|store| (store, store.name().to_owned())).to_vec();
        let mut results = Results { machine: "1 processor".into(), columns, trials: BTreeMap::new() };
        for (store, seconds) in [(Store::K3s, 1.0), (Store::K3s, 9.0), (Store::K3s, 2.0), (Store::Etcd, 4.0)] {
            let outcome = Outcome { operations: 400.0, writes: 400.0, seconds, p50_ms: 1.0, p99_ms: 3.0, refused: 0.0 };
            let phases = vec![("create", Measured { outcome, written: 800_000.0 })];
            results.add(store, Trial { phases, memory: 10.0, server_cpu: 1.0, client_cpu: 2.0, written: 1_200_000.0 });
        }
        let text = results.to_string();
        for line in [
            "| operations a second (p50 / p99 in ms) | k3s | etcd | k3s : etcd |",
            "| create | 200 (1.00 / 3.00) | 100 (1.00 / 3.00) | 2.00 |",
            "| create | 2 000 | 2 000 | 1.00 |",
            "| all, with start and stop | 3 000 | 3 000 | 1.00 |",
            "| memory (PSS), MiB | 10.0 | 10.0 | 1.00 |",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
