//! The client of the datastore benchmarks: requests as kube-apiserver makes them, to anything that speaks etcd's API.

mod client;
mod mixed;
mod phase;
mod registry;
mod watch;

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

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = Runtime::new().context("cannot start threads")?;
    let mut registry = Registry::new(args.endpoint, args.value_bytes);
    runtime.block_on(registry.wait_until_answered())?;
    println!("ready");
    runtime.block_on(registry.discover())?;
    load::phases(|phase: Phase| runtime.block_on(phase.run(&mut registry)))
}
