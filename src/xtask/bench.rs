//! `cargo xtask bench`: what the product costs, beside others that do the same; and whether its bytes are the same each time.
//!
//! A bench measures and tells: no figure makes it fail, only a broken promise does; `budget` alone holds figures to what `docs/budgets.md`
//! allows.

mod addons;
mod api;
mod attacks;
mod budget;
mod contender;
mod crash;
mod datastore;
mod figures;
mod front;
mod growth;
mod ha;
mod idle;
mod load;
mod markdown;
mod memory;
mod scale;
mod start;
mod store;
mod tunnel;
mod usage;
mod way;

pub(crate) use budget::check_sizes;

use anyhow::Result;
use clap::Subcommand;

use crate::process::{cargo, succeed};
use crate::{dist, reproducible};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// How soon a single node is there, and what it takes when idle, beside a script that starts the same programs with etcd.
    Start(start::Args),
    /// What k3s takes against what docs/budgets.md allows. It fails above.
    Budget(budget::Args),
    /// The datastore through many kills, disk failures and power cuts, beside etcd. A broken promise makes it fail.
    Crash(crash::Args),
    /// How fast the datastore is, what it writes and what it takes, beside etcd and kine.
    Datastore(datastore::Args),
    /// What the datastore costs as it grows to a million revisions.
    Growth(growth::Args),
    /// For how long clients cannot write when a server, its store or the network fails, and what a server's store takes.
    Ha(ha::Args),
    /// What the way through port 6443 costs, beside kube-apiserver asked directly.
    Front(front::Args),
    /// What strangers and misbehaving clients of port 6443 do to everybody else.
    Attacks(attacks::Args),
    /// What goes through a node's tunnel, beside remotedialer.
    Tunnel(tunnel::Args),
    /// What the datastore of an idle cluster does, beside etcd and kine under the same programs.
    Idle(idle::Args),
    /// What each program of an idle node holds, and what each lever of a resource profile makes of that.
    Memory(memory::Args),
    /// What nodes and pods cost a server, by nodes that are nowhere.
    Scale(scale::Args),
    /// What manifests cost the server, and a namespace that goes with all that is in it.
    Addons(addons::Args),
    /// `cargo xtask reproducible --all`.
    Reproducible,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Start(args) => start::run(args),
        What::Budget(args) => budget::run(args),
        What::Crash(args) => crash::run(args),
        What::Datastore(args) => datastore::run(args),
        What::Growth(args) => growth::run(args),
        What::Ha(args) => ha::run(args),
        What::Front(args) => front::run(args),
        What::Attacks(args) => attacks::run(args),
        What::Tunnel(args) => tunnel::run(args),
        What::Idle(args) => idle::run(args),
        What::Memory(args) => memory::run(args),
        What::Scale(args) => scale::run(args),
        What::Addons(args) => addons::run(args),
        What::Reproducible => reproducible::run(&reproducible::Args { all: true, ..Default::default() }),
    }
}

/// Builds what nodes run: target/dist, unless that is to be taken as it is, and the harness' own program.
fn build(no_dist: bool) -> Result<()> {
    if !no_dist {
        dist::run(&dist::Args::default())?;
    }
    succeed(cargo().args(["build", "--quiet", "--package", "cluster-tests", "--bins"]))
}
