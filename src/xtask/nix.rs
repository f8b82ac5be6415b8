//! `cargo xtask nix`: the flake and the NixOS module, evaluated with nixpkgs' own `lib` and stand-ins for the rest of nixpkgs.

mod at_hand;
mod build;
mod evaluation;
mod flake;
mod generated;
mod hashes;
mod reference;
mod units;
mod vm_tests;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::counts::Counts;
use at_hand::{Nix, NotAtHand};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Evaluate the module against what it should be, and compare the generated files.
    Check,
    /// Write the files that are made of others: the table of flags that types `settings`, and the reference of options.
    Write,
    /// Compute the hashes of the Go modules that the flake fetches, for components whose go.sum has changed.
    Hashes,
    /// Write the NixOS tests as `cargo xtask vm-test` takes them, and print where they are.
    VmTests,
    /// Build the flake's package by the host's programs, and compare the tree with `target/dist`.
    Build(build::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Check => {
            let counts = check()?;
            println!("{counts}");
            anyhow::ensure!(counts.failed == 0, "{} of the tests failed", counts.failed);
            Ok(())
        }
        Verb::Write => generated::write(&needed()?),
        Verb::Hashes => hashes::write(&needed()?),
        Verb::VmTests => {
            for path in vm_tests::write(&needed()?)? {
                println!("{}", path.display());
            }
            Ok(())
        }
        Verb::Build(args) => build::run(args, &needed()?),
    }
}

/// The NixOS test `name` as `cargo xtask vm-test` takes it.
pub(crate) fn vm_test(name: &str) -> Result<PathBuf> {
    let is_it = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == name);
    vm_tests::write(&needed()?)?.into_iter().find(is_it).with_context(|| format!("nix/tests has no {name}"))
}

fn needed() -> Result<Nix> {
    Nix::at_hand()?.map_err(|missing| anyhow::anyhow!("{missing}"))
}

/// Everything that needs an evaluation and no build. Without Nix or nixpkgs' lib, one skipped test and a word that is not
/// overlooked.
pub(crate) fn check() -> Result<Counts> {
    let nix = match Nix::at_hand()? {
        Ok(nix) => nix,
        Err(missing) => return Ok(skipped(&missing)),
    };
    let mut counts = evaluation::run(&nix)?;
    counts += units::verify(&nix)?;
    counts += generated::compare(&nix)?;
    counts += hashes::compare()?;
    counts += flake::check(&nix)?;
    Ok(counts)
}

fn skipped(missing: &NotAtHand) -> Counts {
    let line = "!".repeat(100);
    println!("{line}\nNOT TESTED: the flake and the NixOS module. {missing}.\n{line}");
    Counts { skipped: 1, ..Counts::default() }
}
