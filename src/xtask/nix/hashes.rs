//! `nix/components/vendor-hashes.json`: what Nix fetches for each component, and the go.sum that it was computed for.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::at_hand::Nix;
use crate::{
    component::{Component, Scratch},
    counts::Counts,
    digest::Inputs,
    folder,
    process::{stdout, succeed},
    workspace,
};

/// What a proxy has of a module that go.sum speaks for; times and listings are left out.
const KEPT: [&str; 2] = ["mod", "zip"];

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hash {
    /// Of go.mod and go.sum, so that a change of either is noticed without fetching anything.
    inputs: String,
    /// In the notation of Nix.
    hash: String,
}

/// Computes every hash whose inputs have changed, by fetching the modules as `nix/component.nix` does.
pub(super) fn write(nix: &Nix) -> Result<()> {
    let path = path();
    let mut known = read(&path)?;
    let mut hashes = BTreeMap::new();
    for component in Component::all()? {
        if component.is_of_tests() {
            continue;
        }
        let inputs = inputs(&component)?;
        let hash = match known.remove(component.name()).filter(|hash| hash.inputs == inputs) {
            Some(hash) => hash,
            None => Hash { inputs, hash: compute(nix, &component)? },
        };
        println!("{:<12} {}", component.name(), hash.hash);
        hashes.insert(component.name().to_owned(), hash);
        // At once: fetching kube's modules takes long, and what was computed stays so.
        fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&hashes)?))?;
    }
    Ok(())
}

/// One test: each component that the flake builds has a hash, made for its present go.mod and go.sum.
pub(super) fn compare() -> Result<Counts> {
    let mut known = read(&path())?;
    let mut outdated = Vec::new();
    for component in Component::all()?.iter().filter(|component| !component.is_of_tests()) {
        let inputs = inputs(component)?;
        if known.remove(component.name()).is_none_or(|hash| hash.inputs != inputs) {
            outdated.push(component.name().to_owned());
        }
    }
    outdated.extend(known.into_keys());
    if outdated.is_empty() {
        return Ok(Counts { passed: 1, ..Counts::default() });
    }
    println!("FAILED vendor hashes of {}: run `cargo xtask nix hashes`", outdated.join(", "));
    Ok(Counts { failed: 1, ..Counts::default() })
}

fn path() -> PathBuf {
    workspace::root().join("nix/components/vendor-hashes.json")
}

fn read(path: &Path) -> Result<BTreeMap<String, Hash>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is not understood", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("Cannot read {}", path.display())),
    }
}

fn inputs(component: &Component) -> Result<String> {
    let mut inputs = Inputs::default();
    for name in ["go.mod", "go.sum"] {
        inputs.part(name, &fs::read(component.folder().join(name))?);
    }
    Ok(inputs.hex()[..16].to_owned())
}

fn compute(nix: &Nix, component: &Component) -> Result<String> {
    let scratch = Scratch::create(&workspace::target(), "modules")?;
    let module = scratch.0.join("module");
    fs::create_dir_all(&module)?;
    for name in ["go.mod", "go.sum"] {
        fs::copy(component.folder().join(name), module.join(name))?;
    }
    let mut go = component.go();
    go.current_dir(&module).env("GOPATH", scratch.0.join("go")).env("GOMODCACHE", scratch.0.join("go/pkg/mod"));
    go.env("GOPROXY", proxies()?).env("GOFLAGS", "-modcacherw").env("GOSUMDB", "off");
    succeed(go.args(["mod", "download"]))?;
    let (fetched, kept) = (scratch.0.join("go/pkg/mod/cache/download"), scratch.0.join("kept"));
    for file in folder::files(&fetched)? {
        if file.extension().is_some_and(|ending| KEPT.iter().any(|kept| ending == *kept)) {
            let to = kept.join(&file);
            fs::create_dir_all(to.parent().expect("a joined path has a parent"))?;
            fs::rename(fetched.join(&file), to)?;
        }
    }
    let hash = stdout(nix.program("nix").args(["hash", "path"]).arg(&kept))?;
    Ok(String::from_utf8(hash)?.trim_end().to_owned())
}

/// The user's module cache before the proxies, so that nothing is fetched twice.
pub(super) fn proxies() -> Result<String> {
    let asked = stdout(std::process::Command::new("go").args(["env", "GOMODCACHE", "GOPROXY"]))?;
    let text = String::from_utf8(asked)?;
    let mut lines = text.lines();
    let (cache, proxy) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    Ok(format!("file://{cache}/cache/download,{proxy}"))
}
