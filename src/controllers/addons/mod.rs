//! Add-ons that come with the server: manifests staged to `<data>/server/manifests`, as k3s does, and applied from there.
//!
//! ```text
//! packaged ──stage──► file on disk ──apply──► objects in the cluster
//!                        │  --disable
//!                        └────► objects deleted ──► file deleted
//! ```
//!
//! The file is the memory of having applied: it goes last, so that a deletion survives restarts. A file `NAME.skip` beside it keeps
//! hands off: nothing is staged, applied or deleted.

mod deploy;
mod manifest;
mod packaged;
mod stage;

use std::{collections::BTreeSet, path::PathBuf};

pub use packaged::Variables;

/// The packaged add-ons of one server.
#[derive(Debug, Clone)]
pub struct Addons {
    /// `<data>/server/manifests`
    pub folder: PathBuf,
    /// `--disable`, by the names k3s has for its add-ons.
    pub disabled: BTreeSet<String>,
    /// What is filled into the manifests.
    pub variables: Variables,
}
