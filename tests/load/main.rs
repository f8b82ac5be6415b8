//! The client of the datastore benchmarks: requests as kube-apiserver makes them, to anything that speaks etcd's API.
//!
//! It says `ready` once the store answers. From then on a line on standard input is a [`Phase`], such as
//! `update --clients 32 --operations 4000`, and what came of it is a line of JSON on standard output. It ends with standard input.

mod client;
mod mixed;
mod outcome;
mod phase;
mod registry;
mod watch;

use std::io::stdin;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::runtime::Runtime;

use phase::Phase;
use registry::Registry;

/// Put load on a store that speaks etcd's API, phase by phase as standard input says.
#[derive(Parser)]
struct Args {
    /// Where the store listens, or will listen soon: http://IP:PORT.
    endpoint: String,
    /// How large the values of objects are.
    #[arg(long, default_value_t = 1500)]
    value_bytes: usize,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(subcommand)]
    phase: Phase,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = Runtime::new().context("cannot start threads")?;
    let mut registry = Registry::new(args.endpoint, args.value_bytes);
    runtime.block_on(registry.wait_until_answered())?;
    println!("ready");
    runtime.block_on(registry.discover())?;
    for line in stdin().lines() {
        let line = line.context("cannot read standard input")?;
        let Line { phase } = Line::try_parse_from(line.split_whitespace())?;
        let outcome = runtime.block_on(phase.run(&mut registry));
        let outcome = outcome.with_context(|| format!("the phase `{line}` failed"))?;
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}
