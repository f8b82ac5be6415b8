//! `cargo xtask down`: takes away everything that `cargo xtask up` put on this machine.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::{
    traces::{self, Before},
    up::{Home, Server},
};

#[derive(clap::Args)]
pub(crate) struct Args {}

/// Stops the cluster with its pods, and looks whether anything of it is left. May be called again, and after a start that was cut short.
pub(crate) fn run(_: &Args) -> Result<()> {
    let home = Home::new();
    let Some(before) = Before::load(&home.before())? else {
        println!("Nothing is up.");
        return Ok(());
    };
    ensure!(
        geteuid().is_root(),
        "A node runs as root: use `sudo --preserve-env=HOME,PATH cargo xtask down`, or become root first"
    );
    stop_and_remove(&home, &before)?;
    fs::remove_dir_all(home.folder()).with_context(|| format!("Cannot remove {}", home.folder().display()))?;
    println!("Nothing of it is left.");
    Ok(())
}

/// Leaves of it no more than its log.
pub(crate) fn stop_and_remove(home: &Home, before: &Before) -> Result<()> {
    if let Some(server) = Server::running(home)? {
        println!("Stopping k3s.");
        if !server.stop()? {
            println!("It did not end when asked to, and is killed.");
        }
    }
    println!("Removing its pods, mounts, interfaces, rules and files.");
    let left = traces::remove(before)?;
    if !left.is_empty() {
        bail!(
            "This is left, and has to be removed by hand (then call `cargo xtask down` again):\n  {}",
            left.join("\n  ")
        );
    }
    let folder = home.folder();
    let mut entries: Vec<_> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("Cannot list {}", folder.display()))?;
    entries.retain(|path| *path != home.log());
    // What says that something is here goes last.
    entries.sort_by_key(|path| *path == home.before());
    for path in entries {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("Cannot remove {}", path.display()))?;
    }
    Ok(())
}
