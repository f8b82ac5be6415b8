//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`, guided by coverage, on the stable toolchain.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, bail};

use crate::{
    process::{cargo, succeed},
    workspace,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which ones; all by default.
    pub(crate) targets: Vec<String>,
    /// How long to look, for each.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) seconds: u64,
}

/// Builds the targets and runs each from its seeds and from what earlier runs have added to them, one a processor at a time.
pub(crate) fn run(args: &Args) -> Result<()> {
    let room = workspace::root().join("tests/fuzz");
    let known = targets(&room.join("corpus"))?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("There is no target {unknown}; there are {}", known.join(", "));
    }
    succeed(
        cargo()
            .env("RUSTC_WORKSPACE_WRAPPER", room.join("rustc"))
            // Of the whole workspace, so that dependencies are those that its other builds have made.
            .args(["build", "--workspace", "--bin", "fuzz", "--features", "fuzz/libfuzzer"]),
    )?;
    let targets = if args.targets.is_empty() { &known } else { &args.targets };
    let targets = Mutex::new(targets.iter());
    let next = || targets.lock().expect("no holder panics").next();
    let lane = || -> Result<()> {
        while let Some(target) = next() {
            fuzz(target, &room.join("corpus").join(target), args.seconds)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..thread::available_parallelism()?.get()).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
    })
}

/// Each target has a folder of seeds.
fn targets(corpus: &Path) -> Result<Vec<String>> {
    let folders = fs::read_dir(corpus).with_context(|| format!("Cannot list {}", corpus.display()))?;
    let mut names =
        folders.map(|folder| Ok(folder?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

fn fuzz(target: &str, seeds: &Path, seconds: u64) -> Result<()> {
    let built = workspace::target().join("debug/fuzz");
    let found = workspace::target().join("fuzz").join(target);
    let corpus = found.join("corpus");
    fs::create_dir_all(&corpus).with_context(|| format!("Cannot make {}", corpus.display()))?;
    let log = found.join("log");
    println!("── {target}: {seconds} s, told in {}", log.display());
    let status = Command::new(built)
        .env("FUZZ_TARGET", target)
        // Databases are made and synced thousands of times.
        .envs(Some(PathBuf::from("/dev/shm")).filter(|memory| memory.is_dir()).map(|memory| ("TMPDIR", memory)))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-timeout=20", "-rss_limit_mb=1024", "-max_len=16384", "-print_final_stats=1", "-verbosity=1"])
        .args([&corpus, seeds])
        .stderr(File::create(&log).with_context(|| format!("Cannot make {}", log.display()))?)
        .status()
        .context("Cannot run the fuzzer")?;
    if !status.success() {
        let told = fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<_> = told.lines().skip(told.lines().count().saturating_sub(40)).collect();
        bail!(
            "{}\n{target} fails for the input that is named above; mend it, and keep the input in {}",
            last.join("\n"),
            seeds.display()
        );
    }
    Ok(())
}
