//! `cargo xtask bench`: what the product costs, beside the same programs started by hand; and whether its bytes are the same each time.
//!
//! A bench measures and tells: no figure makes it fail, only a broken promise does.

mod api;
mod contender;
mod crash;
mod figures;
mod start;
mod usage;

use anyhow::Result;
use clap::Subcommand;

use crate::reproducible;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// How soon a single node is there, and what it takes when idle, beside a script that starts the same programs with etcd.
    Start(start::Args),
    /// The datastore through many kills, disk failures and power cuts, beside etcd. A broken promise makes it fail.
    Crash(crash::Args),
    /// `cargo xtask reproducible --all`.
    Reproducible,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Start(args) => start::run(args),
        What::Crash(args) => crash::run(args),
        What::Reproducible => reproducible::run(&reproducible::Args { all: true }),
    }
}
