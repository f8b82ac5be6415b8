//! The client of the API benches: requests to a Kubernetes API as its clients make them, over HTTP/2 with a client certificate.

mod connection;
mod objects;
mod phase;
mod watch;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use load::{Client, Identity};
use tokio::runtime::Runtime;

use objects::Objects;
use phase::Phase;

/// Put load on a Kubernetes API, phase by phase as standard input says.
#[derive(Parser)]
struct Args {
    /// Where it listens: IP:PORT.
    address: std::net::SocketAddr,
    /// What its certificate is signed by.
    #[arg(long)]
    ca: PathBuf,
    /// Whom to be.
    #[arg(long)]
    certificate: PathBuf,
    /// The certificate's key.
    #[arg(long)]
    key: PathBuf,
    /// How large the data of objects is.
    #[arg(long, default_value_t = 1500)]
    value_bytes: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = Runtime::new().context("cannot start threads")?;
    let identity = Identity { certificate: &args.certificate, key: &args.key };
    let client = Client::new(args.address, &args.ca, Some(identity))?;
    let mut objects = Objects::new(client, args.value_bytes);
    runtime.block_on(objects.discover())?;
    println!("ready");
    load::phases(|phase: Phase| runtime.block_on(phase.run(&mut objects)))
}
