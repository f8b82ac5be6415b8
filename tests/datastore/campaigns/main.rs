//! `datastore-campaigns SCRATCH CYCLES CUTS SEED DATASTORE…`: the long run of `cargo xtask bench crash`, as a Markdown table.
//! `datastore-campaigns judge HISTORY`: what a history that was kept says.

use std::{env, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use datastore_tests::{Campaign, Crash, Datastore, Tally, Verdict};

/// Power cuts without a sync until one has to be caught.
const ATTEMPTS: u64 = 20;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every promise was kept, and every mistake found.
async fn run() -> Result<bool> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["judge", history] => judge(Path::new(history)),
        [scratch, cycles, cuts, seed, ref only @ ..] => {
            long_run(Path::new(scratch), cycles.parse()?, cuts.parse()?, seed.parse()?, only).await
        }
        _ => bail!("usage: datastore-campaigns SCRATCH CYCLES CUTS SEED DATASTORE… | judge HISTORY"),
    }
}

fn judge(history: &Path) -> Result<bool> {
    let text = fs::read(history).with_context(|| format!("cannot read {}", history.display()))?;
    let verdict = Verdict::of(&serde_json::from_slice(&text)?);
    verdict.violations.iter().for_each(|violation| println!("{violation}"));
    println!("{} violations", verdict.violations.len());
    Ok(verdict.violations.is_empty())
}

async fn long_run(scratch: &Path, cycles: u64, cuts: u64, seed: u64, only: &[&str]) -> Result<bool> {
    let store = env::current_exe()?.with_file_name("datastore-server");
    let contenders = [Datastore::etcd()?, Datastore::Store(store.clone())];
    println!("Seed {seed}.\n");
    println!(
        "| datastore | crash | cycles | in a compaction | disks failing | requests | acknowledged writes | unknown | events checked | violations | mistakes found | missed | s |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut is_clean = true;
    for (crash, cycles) in [(Crash::Kill, cycles), (Crash::PowerCut { forgetful: false }, cuts)] {
        for datastore in contenders.iter().filter(|datastore| only.contains(&datastore.name())) {
            let started = Instant::now();
            let mut campaign = Campaign::new(datastore.clone(), crash, scratch, seed).await?;
            let broken = campaign.run(cycles).await?;
            let (found, missed) = (campaign.proof().found(), campaign.proof().missed());
            let violations = broken.as_ref().map_or(0, |broken| broken.violations.len());
            let seconds = started.elapsed().as_secs();
            let Tally { cycles, compactions, failures, requests, acknowledged, unknown, events, .. } = campaign.tally();
            println!(
                "| {} | {} | {cycles} | {compactions} | {failures} | {requests} | {acknowledged} | {unknown} | {events} | {violations} | {found} | {} | {seconds} |",
                datastore.name(),
                if crash == Crash::Kill { "kill -9" } else { "power cut" },
                missed.len(),
            );
            is_clean &= violations == 0 && missed.is_empty();
            if let Some(broken) = broken {
                eprintln!("{broken}");
            }
            if !missed.is_empty() {
                eprintln!("Mistakes that were put in and not found: {missed:?}");
            }
        }
    }
    println!();
    Ok(is_caught(store, scratch, seed).await? && is_clean)
}

/// Whether the judges see that a store loses writes which does not sync.
async fn is_caught(store: std::path::PathBuf, scratch: &Path, seed: u64) -> Result<bool> {
    let crash = Crash::PowerCut { forgetful: true };
    let mut campaign = Campaign::new(Datastore::Store(store), crash, scratch, seed).await?;
    for cut in 1..=ATTEMPTS {
        if let Some(violation) = campaign.cycle().await?.violations.first() {
            println!("Ours without syncs was caught at power cut {cut}: {violation}");
            return Ok(true);
        }
    }
    println!("Ours without syncs was not caught in {ATTEMPTS} power cuts.");
    Ok(false)
}
