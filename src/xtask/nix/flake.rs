//! The flake as Nix sees it, with the stand-in for nixpkgs.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::at_hand::Nix;
use crate::{counts::Counts, folder, workspace};

/// The systems that the flake is for.
const SYSTEMS: [&str; 2] = ["aarch64-linux", "x86_64-linux"];
/// What `nix run`, `nix develop` and modules of others name.
const OUTPUTS: [&[&str]; 9] = [
    &["apps", "SYSTEM", "agent"],
    &["apps", "SYSTEM", "default"],
    &["apps", "SYSTEM", "kubectl"],
    &["apps", "SYSTEM", "server"],
    &["checks", "SYSTEM", "module"],
    &["devShells", "SYSTEM", "default"],
    &["formatter", "SYSTEM"],
    &["packages", "SYSTEM", "default"],
    &["packages", "SYSTEM", "k3s"],
];

/// The checkout without what git ignores, and the stand-in with nixpkgs' lib, as two flakes.
pub(super) struct Flake {
    pub(super) source: PathBuf,
    nixpkgs: PathBuf,
}

impl Flake {
    pub(super) fn lay_out(nix: &Nix) -> Result<Self> {
        let place = workspace::target().join("nix");
        if place.exists() {
            fs::remove_dir_all(&place).with_context(|| format!("Cannot remove {}", place.display()))?;
        }
        let flake = Self { source: place.join("source"), nixpkgs: place.join("nixpkgs") };
        workspace::copy_sources(&flake.source)?;
        folder::copy(&workspace::root().join("tests/nix/nixpkgs"), &flake.nixpkgs)?;
        folder::copy(nix.lib(), &flake.nixpkgs.join("lib"))?;
        Ok(flake)
    }

    /// `nix <verb>` of the flake or of its output `attribute`, which is nothing or begins with `#`.
    pub(super) fn command(&self, nix: &Nix, verb: &[&str], attribute: &str) -> Command {
        let mut command = nix.program("nix");
        let flake = format!("path:{}{attribute}", self.source.display());
        let nixpkgs = format!("path:{}", self.nixpkgs.display());
        command.args(verb).arg(flake).args(["--no-write-lock-file", "--override-input", "nixpkgs", &nixpkgs]);
        command
    }
}

/// Two tests: `nix flake check --no-build`, and `nix flake show` with what others name.
pub(super) fn check(nix: &Nix) -> Result<Counts> {
    let flake = Flake::lay_out(nix)?;
    let mut counts = Counts::default();
    for outcome in [check_evaluates(nix, &flake), shows_outputs(nix, &flake)] {
        match outcome {
            Ok(()) => counts.passed += 1,
            Err(error) => {
                counts.failed += 1;
                println!("FAILED {error:#}");
            }
        }
    }
    Ok(counts)
}

fn check_evaluates(nix: &Nix, flake: &Flake) -> Result<()> {
    quiet(flake.command(nix, &["flake", "check", "--no-build"], "")).map(drop)
}

/// Runs a command that tells each step; what it told is shown if it fails.
fn quiet(mut command: Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("Cannot run {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn shows_outputs(nix: &Nix, flake: &Flake) -> Result<()> {
    let shown: Value = serde_json::from_slice(&quiet(flake.command(nix, &["flake", "show", "--json"], ""))?)?;
    for system in SYSTEMS {
        for path in OUTPUTS {
            let pointer: String =
                path.iter().map(|part| format!("/{}", if *part == "SYSTEM" { system } else { part })).collect();
            ensure!(shown.pointer(&pointer).is_some(), "`nix flake show` has no {}", pointer.replace('/', "."));
        }
    }
    Ok(())
}
