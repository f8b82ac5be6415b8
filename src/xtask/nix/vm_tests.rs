//! The NixOS tests of `nix/tests` for the machines of `cargo xtask vm-test`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::at_hand::Nix;
use crate::workspace;

/// Writes `target/vm-tests/<name>.json` for each, and returns their paths.
pub(crate) fn write(nix: &Nix) -> Result<Vec<PathBuf>> {
    let tests: BTreeMap<String, Value> =
        serde_json::from_slice(&nix.evaluate(&workspace::root().join("tests/nix/vm-tests.nix"))?)
            .context("tests/nix/vm-tests.nix is no set of tests")?;
    let folder = workspace::target().join("vm-tests");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let mut paths = Vec::new();
    for (name, test) in tests {
        let path = folder.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_vec_pretty(&test)?)?;
        paths.push(path);
    }
    Ok(paths)
}
