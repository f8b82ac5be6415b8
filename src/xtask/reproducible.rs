//! `cargo xtask reproducible`: the same inputs give the same bytes.

use anyhow::{Context, Result, ensure};

use crate::component::{Component, Scratch};
use crate::{digest, workspace};

/// Components that build in under a minute from an empty cache.
const QUICK: [&str; 2] = ["cni", "runc"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Every component, not only the quick ones (about 15 minutes on two cores).
    #[arg(long)]
    pub(crate) all: bool,
}

/// Compares the cached build with one made in another folder from an empty Go build cache.
pub(crate) fn run(args: &Args) -> Result<()> {
    let components: Vec<_> =
        Component::all()?.into_iter().filter(|component| args.all || QUICK.contains(&component.name())).collect();
    for component in &components {
        let differing =
            differences(component).with_context(|| format!("Cannot compare builds of {}", component.name()))?;
        ensure!(differing.is_empty(), "Two builds of {} differ in {}", component.name(), differing.join(", "));
        println!("{:<12} {:<9} same bytes", component.name(), component.version());
    }
    Ok(())
}

fn differences(component: &Component) -> Result<Vec<String>> {
    let first = digest::of_folder(&component.build()?.folder)?;
    let scratch = Scratch::create(&workspace::cache()?.join("reproducible"), component.name())?;
    let output = component.build_in(&scratch.0.join("elsewhere"), Some(&scratch.0.join("go-cache")))?;
    let second = digest::of_folder(&output)?;
    let names: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    Ok(names
        .into_iter()
        .filter(|name| first.get(*name) != second.get(*name))
        .map(|name| name.display().to_string())
        .collect())
}
