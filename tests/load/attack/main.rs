//! `attack`: what strangers and misbehaving clients do to a Kubernetes API, for as long as standard input is open.
//!
//! It says `ready` once it has begun, and at the end what it met, by kind, as a line of JSON.

mod flood;
mod hold;

use std::{
    collections::BTreeMap,
    io::stdin,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use clap::Parser;
use load::{Client, Endpoint};
use tokio::runtime::Runtime;

/// Attack a Kubernetes API.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    endpoint: Endpoint,
    /// How many connections, or streams, at once.
    #[arg(long)]
    count: usize,
    #[arg(long)]
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Connections that say nothing.
    Silent,
    /// Connections that say nothing after TLS.
    Handshakes,
    /// Streams whose answers are not read.
    Stalled,
    /// Requests without credentials.
    Anonymous,
    /// Requests with tokens that nobody gave.
    Tokens,
    /// Requests with a certificate that counts.
    Certificate,
}

/// What was met, by kind.
#[derive(Clone, Default)]
struct Met(Arc<Mutex<BTreeMap<String, u64>>>);

impl Met {
    fn count(&self, what: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what.into()).or_default() += 1;
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let client = match args.kind {
        Kind::Stalled | Kind::Certificate => Client::identified(&args.endpoint)?,
        Kind::Silent | Kind::Handshakes | Kind::Anonymous | Kind::Tokens => Client::anonymous(&args.endpoint)?,
    };
    let met = Met::default();
    let runtime = Runtime::new().context("cannot start threads")?;
    let _context = runtime.enter();
    match args.kind {
        Kind::Silent | Kind::Handshakes => hold::connections(&client, args.count, args.kind == Kind::Handshakes, &met),
        Kind::Stalled => runtime.block_on(hold::streams(&client, args.count, &met))?,
        Kind::Anonymous | Kind::Tokens | Kind::Certificate => {
            flood::requests(&client, args.count, args.kind == Kind::Tokens, &met);
        }
    }
    println!("ready");
    stdin().lines().last();
    runtime.shutdown_background();
    println!("{}", serde_json::to_string(&*met.0.lock().unwrap_or_else(PoisonError::into_inner))?);
    Ok(())
}
