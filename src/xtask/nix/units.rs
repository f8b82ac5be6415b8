//! The module's units, read by systemd itself.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, Result};

use super::at_hand::Nix;
use crate::{component::Scratch, counts::Counts, workspace};

/// Directives that are younger than the oldest systemd we support, which ignores them with a word.
const YOUNG: [&str; 1] = ["DelegateSubgroup"];

/// One test a unit: whether `systemd-analyze verify` has nothing to say.
pub(super) fn verify(nix: &Nix) -> Result<Counts> {
    let units: BTreeMap<String, String> =
        serde_json::from_slice(&nix.evaluate(&workspace::root().join("tests/nix/units.nix"))?)
            .context("tests/nix/units.nix is no set of units")?;
    let scratch = Scratch::create(&workspace::target(), "units")?;
    let mut counts = Counts::default();
    for (name, text) in units {
        let path = scratch.0.join(&name);
        fs::write(&path, runnable(&text))?;
        let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() else {
            println!("NOT TESTED: {name} by systemd-analyze, which is not installed");
            counts.skipped += 1;
            continue;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let complaints: Vec<_> = said.lines().filter(|line| line.contains(&name) && !is_young(line)).collect();
        if complaints.is_empty() {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            println!("FAILED {name}:\n  {}", complaints.join("\n  "));
        }
    }
    Ok(counts)
}

/// The unit with a program that is there, since none of the store's is.
fn runnable(unit: &str) -> String {
    ["ExecStart=", "ExecReload=", "ExecStop="]
        .iter()
        .fold(unit.to_owned(), |unit, key| unit.replacen(&format!("\n{key}"), &format!("\n{key}/bin/true "), 1))
}

fn is_young(complaint: &str) -> bool {
    complaint.contains("Unknown key") && YOUNG.iter().any(|key| complaint.contains(key))
}
