//! `cargo xtask components`: builds upstream programs into the cache.

use anyhow::{Context, Result, ensure};

use crate::component::Component;
use crate::counts::Counts;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The components to build, in this order; if none is named, all but Traefik, which takes 10 minutes.
    names: Vec<String>,
    /// Run the tests of our own Go code instead.
    #[arg(long)]
    test: bool,
}

/// Prints one line a component: name, version, seconds, and the folder of its programs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let components = match &args.names[..] {
        [] => Component::usual()?,
        names => names.iter().map(|name| Component::named(name)).collect::<Result<_>>()?,
    };
    for component in components {
        if args.test {
            let counts = component.test().with_context(|| format!("Cannot test the component {}", component.name()))?;
            if counts != Counts::default() {
                println!("{:<13} {counts}", component.name());
            }
            ensure!(counts.failed == 0, "Tests of the component {} failed", component.name());
            continue;
        }
        let built = component.build().with_context(|| format!("Cannot build the component {}", component.name()))?;
        let how = match built.took {
            Some(took) => format!("built in {:.0} s", took.as_secs_f64()),
            None => "was there".to_owned(),
        };
        println!("{:<13} {:<9} {how:<14} {}", component.name(), component.version(), built.folder.display());
    }
    Ok(())
}
