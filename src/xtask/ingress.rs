//! `cargo xtask ingress`: the scenario of the packaged ingress controller, on a `target/dist` that has it.
//!
//! Not a part of `cargo xtask test`: Traefik takes 10 minutes to build.

use anyhow::Result;

use crate::{
    dist,
    process::{cargo, succeed},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Of `k3s` as `cargo build` makes it.
    #[arg(long)]
    debug: bool,
}

/// Leaves `target/dist` as a release has it.
pub(crate) fn run(args: &Args) -> Result<()> {
    dist::run(&dist::Args { traefik: true, debug: args.debug, ..dist::Args::default() })?;
    let scenario = ["test", "--quiet", "--package", "cluster-tests", "--test", "scenarios", "ingress::"];
    succeed(cargo().args(scenario).args(["--", "--ignored", "--nocapture"]))
}
