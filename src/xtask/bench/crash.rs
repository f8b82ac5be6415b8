//! `cargo xtask bench crash`: the datastore through many crashes beside etcd, judged by what it promised.

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::component::Component;
use crate::process::{cargo, succeed};
use crate::workspace;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each datastore is killed in the midst of traffic; the disk of ours fails in half of the cycles.
    #[arg(long, default_value_t = 200)]
    cycles: u64,
    /// How often the power of each datastore's disk is cut.
    #[arg(long, default_value_t = 50)]
    cuts: u64,
    /// Repeats a run, as far as the scheduler lets it.
    #[arg(long)]
    seed: Option<u64>,
    /// Which datastores.
    #[arg(long, value_delimiter = ',', default_values = ["etcd", "ours"], value_parser = ["etcd", "ours"])]
    only: Vec<String>,
    /// Only says what a history that was kept says.
    #[arg(long, value_name = "FILE", exclusive = true)]
    judge: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "datastore-tests", "--bins"];
    succeed(cargo().args(build))?;
    let target = workspace::target();
    let mut campaigns = Command::new(target.join("release/datastore-campaigns"));
    if let Some(history) = &args.judge {
        return succeed(campaigns.arg("judge").arg(history));
    }
    Component::named("etcd")?.build()?;
    let seed = args.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_nanos()))
    });
    let numbers = [args.cycles, args.cuts, seed].map(|number| number.to_string());
    succeed(campaigns.arg(target.join("tmp")).args(numbers).args(&args.only))
}
