//! The flake's package, built for real by the stand-in's builders, which run the host's cargo and Go: the tree has to be
//! that of `cargo xtask dist`, file by file.

use std::{collections::BTreeSet, env, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use super::{at_hand::Nix, flake::Flake, hashes};
use crate::{
    digest, dist,
    process::{stdout, succeed},
    workspace,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Build this output and print where it is, instead of comparing the package.
    #[arg(value_name = "OUTPUT")]
    output: Option<String>,
}

pub(super) fn run(args: &Args, nix: &Nix) -> Result<()> {
    let flake = Flake::lay_out(nix)?;
    if let Some(output) = &args.output {
        println!("{}", build(nix, &flake, output)?.display());
        return Ok(());
    }
    let tree = build(nix, &flake, "k3s")?;
    // The same builder made the program: what differs between the two is how Nix and xtask go about it.
    dist::run(&dist::Args { traefik: true, ..dist::Args::default() })?;
    let (ours, theirs) = (digest::of_folder(&dist::folder())?, digest::of_folder(&tree)?);
    let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differing: Vec<_> = names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name)).collect();
    ensure!(differing.is_empty(), "{} and {} differ in {differing:?}", dist::folder().display(), tree.display());
    succeed(Command::new(tree.join("bin/k3s")).arg("--version"))?;
    println!("{} files, the same bytes as {}", ours.len(), dist::folder().display());
    Ok(())
}

fn build(nix: &Nix, flake: &Flake, output: &str) -> Result<PathBuf> {
    let go_cache = String::from_utf8(stdout(Command::new("go").args(["env", "GOCACHE"]))?)?;
    let home = PathBuf::from(env::var_os("HOME").context("Set HOME")?);
    let or_home = |variable: &str, folder: &str| env::var_os(variable).unwrap_or_else(|| home.join(folder).into());
    let mut command = flake.command(nix, &["build", "--impure", "--no-link", "--json", "-L"], &format!("#{output}"));
    command
        .env("GOPROXY", hashes::proxies()?)
        .env("STAND_IN_GOCACHE", go_cache.trim_end())
        .env("STAND_IN_CARGO_HOME", or_home("CARGO_HOME", ".cargo"))
        .env("STAND_IN_RUSTUP_HOME", or_home("RUSTUP_HOME", ".rustup"))
        .env("STAND_IN_CARGO_TARGET_DIR", workspace::cache()?.join("nix/cargo-target"))
        .env("STAND_IN_PATH", env::var_os("PATH").unwrap_or_default());
    let built: serde_json::Value = serde_json::from_slice(&stdout(&mut command)?)?;
    let path = built.pointer("/0/outputs/out").and_then(serde_json::Value::as_str);
    Ok(PathBuf::from(path.with_context(|| format!("`nix build` does not say where {output} is"))?))
}
