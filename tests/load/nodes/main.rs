//! Nodes that are nowhere: to a Kubernetes API they are kubelet and kube-proxy with their watches and heartbeats; the pods that they say are
//! running run nowhere.

mod node;
mod objects;
mod phase;

use anyhow::{Context, Result};
use clap::Parser;
use load::{Client, Connection, Endpoint};
use tokio::runtime::Runtime;

use phase::{Fleet, Phase};

/// Be nodes of a cluster, phase by phase as standard input says.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    endpoint: Endpoint,
}

fn main() -> Result<()> {
    let client = Client::identified(&Args::parse().endpoint)?;
    let runtime = Runtime::new().context("cannot start threads")?;
    runtime.block_on(async { Connection::open(&client).await?.ask(http::Method::GET, "/readyz", Vec::new()).await })?;
    println!("ready");
    let mut fleet = Fleet::new(client);
    load::phases(|phase: Phase| runtime.block_on(phase.run(&mut fleet)))
}
