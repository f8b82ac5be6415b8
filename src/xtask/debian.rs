//! Trees of Debian's packages, made by mmdebstrap.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{component::Scratch, digest::Inputs, process::succeed};

/// The release whose packages they hold: systemd 257, Linux 6.12.
const RELEASE: &str = "trixie";
/// Texts that nobody reads on a machine: 65 MB.
const LEFT_OUT: [&str; 3] = ["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// For what writes the time into a file, such as the day of passwords: 2026-01-01, in seconds since 1970.
pub(crate) const EPOCH: u64 = 1_767_225_600;

/// What a tree is made of.
pub(crate) struct Tree<'a> {
    /// Separated by white space.
    pub(crate) packages: &'a str,
    /// A script that is given the tree when its packages are there.
    pub(crate) customize: Option<&'a Path>,
}

impl Tree<'_> {
    /// What decides on its content, besides Debian's archive.
    pub(crate) fn inputs(&self) -> Result<Inputs> {
        let mut inputs = Inputs::default();
        inputs.part("release", RELEASE.as_bytes());
        inputs.part("packages", self.packages.as_bytes());
        if let Some(script) = self.customize {
            inputs.part("customize", &fs::read(script).with_context(|| format!("Cannot read {}", script.display()))?);
        }
        Ok(inputs)
    }

    /// The one in `cache` that is called so, made if it is not there.
    pub(crate) fn cached(&self, cache: &Path, name: &str) -> Result<PathBuf> {
        let made = cache.join(format!("{name}-{}", &self.inputs()?.hex()[..16]));
        if !made.exists() {
            println!("Making the tree {name} of Debian's packages.");
            let scratch = Scratch::create(cache, name)?;
            let tree = scratch.0.join("tree");
            self.make(&tree)?;
            fs::rename(&tree, &made).with_context(|| format!("Cannot rename to {}", made.display()))?;
        }
        Ok(made)
    }

    /// Makes it at `to`, as root.
    pub(crate) fn make(&self, to: &Path) -> Result<()> {
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.env("SOURCE_DATE_EPOCH", EPOCH.to_string()).args(["--quiet", "--variant=minbase"]);
        mmdebstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
        let names: Vec<_> = self.packages.split_whitespace().collect();
        mmdebstrap.arg(format!("--include={}", names.join(",")));
        if let Some(script) = self.customize {
            mmdebstrap.arg(format!("--customize-hook=sh {} \"$1\"", script.display()));
        }
        succeed(mmdebstrap.arg(RELEASE).arg(to))
    }
}
