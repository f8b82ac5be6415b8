//! The client of the API benches: requests to a Kubernetes API as its clients make them, over HTTP/2 with a client certificate.

mod objects;
mod phase;
mod watch;

use anyhow::{Context, Result};
use clap::Parser;
use load::{Client, Endpoint};
use tokio::runtime::Runtime;

use objects::Objects;
use phase::Phase;

/// Put load on a Kubernetes API, phase by phase as standard input says.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    endpoint: Endpoint,
    /// How large the data of objects is.
    #[arg(long, default_value_t = 1500)]
    value_bytes: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = Runtime::new().context("cannot start threads")?;
    let mut objects = Objects::new(Client::identified(&args.endpoint)?, args.value_bytes);
    runtime.block_on(objects.discover())?;
    println!("ready");
    load::phases(|phase: Phase| runtime.block_on(phase.run(&mut objects)))
}
