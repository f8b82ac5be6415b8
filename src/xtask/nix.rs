//! `cargo xtask nix`: the flake and the NixOS module, evaluated with nixpkgs' own `lib` and stand-ins for the rest of nixpkgs.

mod at_hand;
mod evaluation;
mod generated;
mod reference;
mod units;

use anyhow::Result;

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
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match args.verb {
        Verb::Check => {
            let counts = check()?;
            println!("{counts}");
            anyhow::ensure!(counts.failed == 0, "{} of the tests failed", counts.failed);
            Ok(())
        }
        Verb::Write => match Nix::at_hand()? {
            Ok(nix) => generated::write(&nix),
            Err(missing) => anyhow::bail!("{missing}"),
        },
    }
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
    Ok(counts)
}

fn skipped(missing: &NotAtHand) -> Counts {
    let line = "!".repeat(100);
    println!("{line}\nNOT TESTED: the flake and the NixOS module. {missing}.\n{line}");
    Counts { skipped: 1, ..Counts::default() }
}
