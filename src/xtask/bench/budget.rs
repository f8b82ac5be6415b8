//! `cargo xtask bench budget`: what is measured against what `docs/budgets.md` allows.
//!
//! Sizes are the same on every machine, and `cargo xtask test` looks at them by itself. Times and memory are measured beside the script, in
//! the same run: what they may be is told as a multiple of the script's.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{
    figures::{Figures, Quantity, Side},
    markdown::figure,
    start,
};
use crate::{counts::Counts, dist, folder, workspace};

/// Where the budgets are.
const FILE: &str = "docs/budgets.md";

/// A size of `target/dist`, in MB.
const SIZES: [(&str, &str); 4] =
    [("`bin/k3s`", "bin"), ("`libexec/k3s`", "libexec"), ("`share/k3s`", "share"), ("the package without Traefik", "")];

/// What `bench start` measures of both sides.
const MEASURED: [(&str, Quantity, &str); 6] = [
    ("from an empty disk to Ready", Quantity::EmptyStart, "node Ready"),
    ("from an empty disk to a pod that runs", Quantity::EmptyStart, "pod Running"),
    ("from existing data to Ready", Quantity::Restart, "node Ready"),
    ("memory when idle (PSS)", Quantity::Memory, "= without pods and shims"),
    ("processor time when idle", Quantity::Cpu, "= without pods and shims"),
    ("written when idle", Quantity::Written, "= without pods and shims"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each side is measured; medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Look at sizes alone.
    #[arg(long)]
    sizes_only: bool,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// Fails if anything takes more than it may.
pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    let budgets = Budgets::read()?;
    let mut report = Report::default();
    sizes(&budgets, &mut report)?;
    if !args.sizes_only {
        // CoreDNS is no part of the script.
        let figures = start::measure(args.rounds, "--disable=coredns", &[], start::Watched::Idle)?;
        for (name, quantity, row) in MEASURED {
            report.add(name, ratio(&figures, quantity, row)?, budgets.of(name)?);
        }
    }
    print!("{}", report.text);
    ensure!(report.over == 0, "{} of the budgets in {FILE} are exceeded", report.over);
    Ok(())
}

/// One test a size: whether that of `target/dist` is within its budget.
pub(crate) fn check_sizes() -> Result<Counts> {
    let mut report = Report::default();
    sizes(&Budgets::read()?, &mut report)?;
    print!("{}", report.text);
    let passed = SIZES.len() as u64 - report.over;
    Ok(Counts { passed, failed: report.over, skipped: 0 })
}

fn sizes(budgets: &Budgets, report: &mut Report) -> Result<()> {
    for (name, below) in SIZES {
        report.add(name, megabytes(&dist::folder().join(below))?, budgets.of(name)?);
    }
    Ok(())
}

fn ratio(figures: &Figures, quantity: Quantity, row: &str) -> Result<f64> {
    let of = |side| figures.median(quantity, row, side).with_context(|| format!("{row} was not measured"));
    let (k3s, script) = (of(Side::K3s)?, of(Side::Script)?);
    ensure!(script > 0.0, "The script's {row} is 0: nothing is a multiple of it");
    Ok(k3s / script)
}

/// What of a tree is no link, nor Traefik's.
fn megabytes(tree: &Path) -> Result<f64> {
    let mut bytes = 0;
    for file in folder::files(tree)? {
        let path = tree.join(&file);
        if !path.is_symlink() && !file.to_string_lossy().contains("traefik") {
            bytes += fs::metadata(&path)?.len();
        }
    }
    // Exact up to 9 PB.
    #[expect(clippy::cast_precision_loss, reason = "a package has less than 9 PB")]
    Ok(bytes as f64 / 1e6)
}

/// The rows of the file's tables: a name and a number.
struct Budgets(Vec<(String, f64)>);

impl Budgets {
    fn read() -> Result<Self> {
        let path = workspace::root().join(FILE);
        Ok(Self::parse(&fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?))
    }

    fn parse(text: &str) -> Self {
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            Some((cells.next()?.to_owned(), cells.next()?.trim_end_matches(" |").parse().ok()?))
        };
        Self(text.lines().filter_map(row).collect())
    }

    fn of(&self, name: &str) -> Result<f64> {
        let found = self.0.iter().find(|(row, _)| row == name);
        found.map(|(_, limit)| *limit).with_context(|| format!("{FILE} has no budget for {name}"))
    }
}

/// A line for each budget.
#[derive(Default)]
struct Report {
    text: String,
    over: u64,
}

impl Report {
    fn add(&mut self, name: &str, measured: f64, limit: f64) {
        let is_over = measured > limit;
        self.over += u64::from(is_over);
        let word = if is_over { "OVER" } else { "ok" };
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{word:<5}{name:<40}{:>8} of {:>6}", figure(measured), figure(limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_budget_is_in_the_file() {
        let budgets = Budgets::read().unwrap();
        for name in SIZES.map(|(name, _)| name).into_iter().chain(MEASURED.map(|(name, ..)| name)) {
            assert!(budgets.of(name).unwrap() > 0.0, "{name}");
        }
    }

    #[test]
    fn a_budget_that_is_exceeded_is_counted() {
        let budgets = Budgets::parse("| what | at most |\n|---|---:|\n| memory | 1.5 | of the script's |\n");
        assert!(budgets.of("what").is_err());
        let mut report = Report::default();
        for measured in [1.5, 1.51] {
            report.add("memory", measured, budgets.of("memory").unwrap());
        }
        assert_eq!(report.over, 1);
        assert!(report.text.starts_with("ok   memory") && report.text.contains("\nOVER memory"), "{}", report.text);
    }
}
