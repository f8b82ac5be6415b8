//! Nodes that are nowhere: to a Kubernetes API they are kubelet and kube-proxy with their watches and heartbeats; the pods that they say are
//! running run nowhere.

mod caller;
mod identity;
mod ledger;
mod node;
mod objects;
mod phase;

use anyhow::{Context, Result};
use clap::Parser;
use load::{Client, Connection, Endpoint};
use tokio::runtime::Runtime;

use identity::Signer;
use phase::{Fleet, Phase};

/// Be nodes of a cluster, phase by phase as standard input says.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    signer: Signer,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let client = Client::identified(&args.endpoint)?;
    let identities = args.signer.identities(client.clone())?;
    let runtime = Runtime::new().context("cannot start threads")?;
    runtime.block_on(async { Connection::open(&client).await?.ask(http::Method::GET, "/readyz", Vec::new()).await })?;
    println!("ready");
    let mut fleet = Fleet::new(client, identities);
    load::phases(|phase: Phase| runtime.block_on(phase.run(&mut fleet)))
}
