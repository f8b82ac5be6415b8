//! `cargo xtask test`: everything that has to hold before a change lands, and what CI runs.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bench,
    component::Component,
    counts::Counts,
    dist, fuzz, nix, packages,
    process::{cargo, succeed},
    reproducible,
    storage_tests::{self, Datastore},
    system_packages, workspace,
};

/// Tools that cargo does not bring along, built once into the cache, and the part of them that is used.
const TOOLS: [(&str, &str, &[&str]); 2] = [
    ("cargo-nextest", "0.9.151", &["--no-default-features", "--features", "default-no-update"]),
    ("cargo-deny", "0.20.2", &[]),
];
/// How long each fuzz target runs here: enough for its seeds and for what is easily found.
const FUZZ_SECONDS: u64 = 5;
/// The package of the cluster scenarios.
const SCENARIOS: &str = "cluster-tests";
/// Tests that etcd passes first; `--unit` runs them without it.
const CONTRACT: &str = "package(k3s-datastore) and test(/^contract::/)";
/// The package that judges datastores; etcd, the first of them, is a component.
const DATASTORES: &str = "datastore-tests";
/// The package that puts remotedialer, a component, at the other end of our tunnels.
const TUNNELS: &str = "tunnel-tests";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what needs no cluster: format, lints, licences, unit tests.
    #[arg(long)]
    unit: bool,
}

/// Runs every step until one fails, and ends with a line that counts the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut counts = Counts::default();
    let outcome = steps(args, &mut counts);
    if outcome.is_err() && counts.failed == 0 {
        counts.failed = 1;
    }
    println!("{counts}");
    outcome
}

fn steps(args: &Args, counts: &mut Counts) -> Result<()> {
    step("system packages", system_packages::ensure)?;
    step("format", || succeed(cargo().args(["fmt", "--all", "--check"])))?;
    step("lints", || {
        succeed(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    let [nextest, deny] = step("tools", || Ok([tool(TOOLS[0])?, tool(TOOLS[1])?]))?;
    // Advisories need a database that is fetched from the network: `cargo deny check advisories` where there is one.
    step("licences, bans, sources", || {
        succeed(Command::new(deny).current_dir(workspace::root()).args(["check", "licenses", "bans", "sources"]))
    })?;
    // Always of the whole workspace: with a package left out, what all of them use is compiled again, with fewer features.
    let nextest = |filter: &str| {
        let mut command = Command::new(&nextest);
        command.current_dir(workspace::root()).args(["nextest", "run", "--workspace", "--filterset", filter]);
        command
    };
    let later = format!("package({SCENARIOS}) or package({DATASTORES}) or package({TUNNELS})");
    let later = if args.unit { later } else { format!("{later} or ({CONTRACT})") };
    step("unit tests", || count(&mut nextest(&format!("not ({later})")), counts))?;
    step("NixOS module", || add(nix::check()?, counts))?;
    step("fuzz", || fuzz::run(&fuzz::Args { targets: Vec::new(), seconds: FUZZ_SECONDS }))?;
    if args.unit {
        return Ok(());
    }
    step("components", || Component::usual()?.iter().try_for_each(|component| component.build().map(drop)))?;
    let build = || {
        step("dist", || dist::run(&dist::Args::default()))?;
        step("the product's image", || packages::run(&packages::Args::image_alone()))
    };
    at_once(build, || {
        step("etcd's contract, by etcd first", || {
            let program = |name: &str| Ok::<_, anyhow::Error>(Component::named(name)?.build()?.folder.join(name));
            let mut contract = nextest(CONTRACT);
            contract.env("ETCD_BINARY", program("etcd")?).env("ETCDCTL_BINARY", program("etcdctl")?);
            count(&mut contract, counts)
        })?;
        step("tunnels, with remotedialer at the other end", || {
            let remotedialer = Component::named("remotedialer")?.build()?.folder;
            let mut tunnels = nextest(&format!("package({TUNNELS})"));
            count(tunnels.env("REMOTEDIALER", remotedialer.join("remotedialer")), counts)
        })?;
        step("tests of components", || {
            Component::usual()?.iter().try_for_each(|component| add(component.test()?, counts))
        })?;
        step("datastores", || count(nextest(&format!("package({DATASTORES})")).arg("--no-fail-fast"), counts))
    })?;
    step("sizes within their budgets", || add(bench::check_sizes()?, counts))?;
    at_once(
        || step("reproducible", || reproducible::run(&reproducible::Args::default())),
        || step("Kubernetes' storage tests", || add(storage_tests::run_all(Datastore::K3s)?, counts)),
    )?;
    step("the scenarios' packages", || system_packages::ensure_each(&system_packages::DATABASES))?;
    step("cluster scenarios", || {
        let program = |name: &str| Ok::<_, anyhow::Error>(Component::named(name)?.build()?.folder.join(name));
        let mut scenarios = nextest(&format!("package({SCENARIOS})"));
        scenarios.env("GOFAKES3", program("gofakes3")?).env("NATS_SERVER", program("nats-server")?);
        count(scenarios.arg("--no-fail-fast"), counts)
    })
}

/// Runs steps that compute beside steps that mostly wait.
fn at_once(compute: impl FnOnce() -> Result<()> + Send, wait: impl FnOnce() -> Result<()>) -> Result<()> {
    thread::scope(|scope| {
        let computed = scope.spawn(compute);
        let waited = wait();
        waited.and(computed.join().expect("a step does not panic"))
    })
}

/// Says what begins and how long it took.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("── {name}");
    let started = Instant::now();
    let outcome = work().with_context(|| format!("The step \"{name}\" failed"))?;
    println!("── {name}: {:.0} s", started.elapsed().as_secs_f32());
    Ok(outcome)
}

/// The tool's program, built if the cache does not have this version.
fn tool((name, version, features): (&str, &str, &[&str])) -> Result<PathBuf> {
    let folder = workspace::cache()?.join("tools").join(format!("{name}-{version}"));
    let program = folder.join("bin").join(name);
    if !program.exists() {
        // What a run gains by optimised tools is less than what optimising them takes.
        let quick = ["--debug", "--config", "profile.dev.debug=0"];
        let install = ["install", "--quiet", "--locked", name, "--version", version];
        succeed(cargo().args(install).args(quick).args(features).arg("--root").arg(&folder))?;
    }
    Ok(program)
}

/// Runs nextest, passes its report on, and adds up what its last line says.
fn count(nextest: &mut Command, counts: &mut Counts) -> Result<()> {
    let mut child = nextest.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("Cannot run cargo-nextest")?;
    let report = child.stderr.take().context("The report of cargo-nextest is not readable")?;
    let mut summary = None;
    for line in BufReader::new(report).lines() {
        let line = line.context("Cannot read the report of cargo-nextest")?;
        eprintln!("{line}");
        summary = summary_of_nextest(&line).or(summary);
    }
    let status = child.wait()?;
    let Some(run) = summary else { bail!("cargo-nextest ran no test ({status})") };
    add(run, counts)?;
    ensure!(status.success(), "cargo-nextest failed: {status}");
    Ok(())
}

fn add(run: Counts, counts: &mut Counts) -> Result<()> {
    *counts += run;
    ensure!(run.failed == 0, "{} of its tests failed", run.failed);
    Ok(())
}

/// `Summary [   1.2s] 3 tests run: 1 passed (1 slow), 1 failed, 1 timed out, 4 skipped`
fn summary_of_nextest(line: &str) -> Option<Counts> {
    let (_, counted) = line.trim_start().strip_prefix("Summary")?.split_once("run:")?;
    let mut counts = Counts::default();
    for part in counted.split(',') {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next().and_then(|word| word.parse::<u64>().ok()), words.next()) else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_counted_by_what_became_of_tests() {
        let line = "     Summary [   1.204s] 5 tests run: 2 passed (1 slow), 2 failed, 1 timed out, 4 skipped";
        assert_eq!(summary_of_nextest(line), Some(Counts { passed: 2, failed: 3, skipped: 4 }));
        assert_eq!(summary_of_nextest("        PASS [   0.004s] k3s-pki"), None);
    }
}
