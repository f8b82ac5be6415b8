//! Files of the tree that are made of others, so that each fact is written once.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use k3s_config::{CatalogueEntry, Role};
use serde_json::{Map, Value, json};

use super::{at_hand::Nix, reference};
use crate::{counts::Counts, workspace};

pub(super) fn write(nix: &Nix) -> Result<()> {
    // The reference is made of the module, which reads the flags.
    for make in [flags, options] {
        let (path, text) = make(nix)?;
        fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// One test a file: whether it is what `write` would write.
pub(super) fn compare(nix: &Nix) -> Result<Counts> {
    let mut counts = Counts::default();
    for make in [flags, options] {
        let (path, text) = make(nix)?;
        if fs::read_to_string(&path).ok().as_deref() == Some(&text) {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            println!("FAILED {} is out of date: run `cargo xtask nix write`", path.display());
        }
    }
    Ok(counts)
}

fn flags(_: &Nix) -> Result<(PathBuf, String)> {
    let of = |role| k3s_config::catalogue(role).map(|flag| (flag.name.to_owned(), entry(&flag))).collect::<Map<_, _>>();
    let table = json!({ "server": of(Role::Server), "agent": of(Role::Agent) });
    Ok((workspace::root().join("nix/module/flags.json"), format!("{}\n", serde_json::to_string_pretty(&table)?)))
}

/// What is not set is left out.
fn entry(flag: &CatalogueEntry) -> Value {
    let mut entry = json!({ "kind": flag.kind, "help": flag.help, "secret": flag.secret });
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            entry[key] = value;
        }
    };
    set("default", flag.default.map(Value::from));
    set("variable", flag.variable.map(Value::from));
    set("refusedValues", (!flag.refused_values.is_empty()).then(|| flag.refused_values.into()));
    set("refusal", flag.refusal.map(|refusal| json!({ "what": refusal.what, "instead": refusal.instead })));
    entry
}

fn options(nix: &Nix) -> Result<(PathBuf, String)> {
    let text = reference::page(&nix.evaluate(&workspace::root().join("tests/nix/reference.nix"))?)?;
    Ok((workspace::root().join("docs/nixos-options.md"), text))
}
