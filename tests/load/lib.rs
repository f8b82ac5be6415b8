//! What the client programs of the benches have in common: `datastore-load` asks a store, `api-load` a Kubernetes API, `fake-nodes` are
//! nodes to one, and `attack` does it harm.
//!
//! All but the last say `ready` once they were answered. From then on a line on standard input is a phase, such as
//! `get --clients 32 --operations 4000`, and what came of it is a line of JSON on standard output. They end with standard input.

mod client;
mod connection;
mod outcome;
mod values;

use std::{future::Future, io::stdin, time::Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::task::JoinSet;

pub use client::{Client, Endpoint};
pub use connection::Connection;
pub use outcome::{Log, Outcome};
pub use values::Values;

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line<Phase: Subcommand> {
    #[command(subcommand)]
    phase: Phase,
}

/// Runs the phases that standard input names, and tells what came of each.
///
/// # Errors
/// Standard input or output fails, a phase is not understood, or it fails.
pub fn phases<Phase: Subcommand>(mut run: impl FnMut(Phase) -> Result<Outcome>) -> Result<()> {
    for line in stdin().lines() {
        let line = line.context("cannot read standard input")?;
        let Line { phase } = Line::try_parse_from(line.split_whitespace())?;
        let outcome = run(phase).with_context(|| format!("the phase `{line}` failed"))?;
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

/// How much a phase does.
#[derive(clap::Args, Clone, Copy)]
pub struct Size {
    /// How many clients, each on a connection of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// How many operations of all clients together.
    #[arg(long)]
    operations: usize,
}

impl Size {
    /// How many clients.
    pub fn clients(self) -> usize {
        self.clients.into()
    }

    /// The numbers of the operations, dealt to the clients.
    pub fn dealt(self) -> Vec<Vec<usize>> {
        dealt(0..self.operations, self.clients())
    }

    /// How many operations of all clients together.
    pub fn operations(self) -> usize {
        self.operations
    }
}

/// Lets clients work at once, each on a hand of its own, and returns what they did and the hands as they are then.
///
/// # Errors
/// Work fails, for the first that does.
pub async fn together<Client, Hand, Work>(
    clients: Vec<(Client, Hand)>,
    work: impl Fn(Client, Hand) -> Work,
) -> Result<(Outcome, Vec<Hand>)>
where
    Hand: Send + 'static,
    Work: Future<Output = Result<(Log, Hand)>> + Send + 'static,
{
    let started = Instant::now();
    let mut working = JoinSet::new();
    for (client, hand) in clients {
        working.spawn(work(client, hand));
    }
    let (mut logs, mut hands) = (Vec::new(), Vec::new());
    while let Some(client) = working.join_next().await {
        let (log, hand) = client.context("a client panicked")??;
        logs.push(log);
        hands.push(hand);
    }
    Ok((Outcome::new(logs, started.elapsed()), hands))
}

/// Dealt like cards: the first to the first, the second to the second.
pub fn dealt<Card>(cards: impl IntoIterator<Item = Card>, hands: usize) -> Vec<Vec<Card>> {
    let mut dealt: Vec<Vec<Card>> = (0..hands).map(|_| Vec::new()).collect();
    for (index, card) in cards.into_iter().enumerate() {
        dealt[index % hands].push(card);
    }
    dealt
}
