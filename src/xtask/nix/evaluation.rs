//! The module judged by `tests/nix/evaluation.nix`.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::at_hand::Nix;
use crate::{counts::Counts, workspace};

/// One line of what the file evaluates to.
#[derive(Debug, Deserialize)]
struct Verdict {
    name: String,
    passed: bool,
    got: serde_json::Value,
    expected: serde_json::Value,
}

/// Prints what failed, with both sides.
pub(super) fn run(nix: &Nix) -> Result<Counts> {
    let verdicts: Vec<Verdict> =
        serde_json::from_slice(&nix.evaluate(&workspace::root().join("tests/nix/evaluation.nix"))?)
            .context("tests/nix/evaluation.nix is no list of verdicts")?;
    let mut counts = Counts::default();
    for verdict in verdicts {
        if verdict.passed {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            println!("FAILED {}", verdict.name);
            println!("  got      {:#}\n  expected {:#}", verdict.got, verdict.expected);
        }
    }
    println!("nix evaluation: {counts}");
    Ok(counts)
}
