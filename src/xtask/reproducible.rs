//! `cargo xtask reproducible`: the same inputs give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::component::{Component, Scratch};
use crate::edge_image::{self, Bases, Edition};
use crate::{digest, dist, folder, packages, workspace};

/// Components that build in under a minute from an empty cache.
const QUICK: [&str; 2] = ["cni", "runc"];

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Every component, not only the quick ones (about 15 minutes on two cores).
    #[arg(long)]
    pub(crate) all: bool,
    /// The packages instead, of `target/dist`.
    #[arg(long, conflicts_with = "all")]
    pub(crate) packages: bool,
    /// The edge image instead, of `target/dist` and Debian's packages, unpacked twice.
    #[arg(long, conflicts_with_all = ["all", "packages"])]
    pub(crate) edge: bool,
}

/// Compares what was made with what is made again in another folder.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.packages {
        return packed_twice();
    }
    if args.edge {
        return imaged_twice();
    }
    let components: Vec<_> =
        Component::all()?.into_iter().filter(|component| args.all || QUICK.contains(&component.name())).collect();
    for component in &components {
        let differing =
            built_twice(component).with_context(|| format!("Cannot compare builds of {}", component.name()))?;
        ensure!(differing.is_empty(), "Two builds of {} differ in {}", component.name(), differing.join(", "));
        println!("{:<12} {:<9} same bytes", component.name(), component.version());
    }
    Ok(())
}

/// What differs between the cached build and one from an empty Go build cache.
fn built_twice(component: &Component) -> Result<Vec<String>> {
    let first = digest::of_folder(&component.build()?.folder)?;
    let scratch = Scratch::create(&workspace::cache()?.join("reproducible"), component.name())?;
    let output = component.build_in(&scratch.0.join("elsewhere"), Some(&scratch.0.join("go-cache")))?;
    Ok(differences(&first, &digest::of_folder(&output)?))
}

/// Packs two copies of the tree, which lie in different folders and whose files are of different times.
fn packed_twice() -> Result<()> {
    let scratch = Scratch::create(&workspace::target(), "reproducible")?;
    let pack = |name: &str| {
        let (tree, packed) = (scratch.0.join(name).join("tree"), scratch.0.join(name).join("packages"));
        folder::copy(&dist::folder(), &tree).context("Run `cargo xtask dist` first")?;
        packages::pack_image(&tree, &packed)?;
        packages::pack_extensions(&tree, &packed)?;
        digest::of_folder(&packed)
    };
    let (first, second) = (pack("first")?, pack("second")?);
    let differing = differences(&first, &second);
    ensure!(differing.is_empty(), "Packed twice, these differ: {}", differing.join(", "));
    first.iter().for_each(|(file, digest)| println!("{digest}  {}, twice", file.display()));
    Ok(())
}

/// Makes the edge image of the tree in the cache, and of one that is made now and lies elsewhere.
fn imaged_twice() -> Result<()> {
    let scratch = Scratch::create(&workspace::target(), "reproducible")?;
    let make = |bases: &Bases, name: &str| {
        let folder = scratch.0.join(name);
        bases.make(&Edition::default(), &folder)?;
        digest::of_folder(&folder)
    };
    let first = make(&Bases::cached(edge_image::KERNEL)?, "first")?;
    let second = make(&Bases::anew(&scratch.0.join("tree"))?, "second")?;
    let differing = differences(&first, &second);
    ensure!(differing.is_empty(), "Made twice, these differ: {}", differing.join(", "));
    first.iter().for_each(|(file, digest)| println!("{digest}  {}, twice", file.display()));
    Ok(())
}

fn differences(first: &BTreeMap<PathBuf, String>, second: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let names: BTreeSet<&PathBuf> = first.keys().chain(second.keys()).collect();
    let differ = |name: &&&PathBuf| first.get(**name) != second.get(**name);
    names.iter().filter(differ).map(|name| name.display().to_string()).collect()
}
