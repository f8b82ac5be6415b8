//! The versions of the edge image that tests update machines to, all signed with a key that is made for them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    edge_image::{Bases, Edition, KERNEL, Key},
    workspace,
};

/// What machines are flashed with.
const FLASHED: &str = "1";
/// What they are updated to, and what these hold besides.
const UPDATES: [(&str, Option<&str>); 3] =
    [("2", None), ("3", Some("tests/vm/edge/never-ready")), ("4", Some("tests/vm/edge/migrates"))];

/// Makes the disk, and the sets if they are asked for; returns the disk.
pub(super) fn make(with_updates: bool) -> Result<PathBuf> {
    let bases = Bases::cached(KERNEL)?;
    let folder = folder();
    fs::create_dir_all(&folder)?;
    let key = bases.make_key(&folder)?;
    let edition = |version, besides: Option<&Path>| -> Result<PathBuf> {
        bases.make(&Edition { version, key: Some(Key(&key)), besides }, &folder.join(version))
    };
    let disk = edition(FLASHED, None)?;
    if with_updates {
        fs::create_dir_all(updates())?;
        for (version, besides) in UPDATES {
            let besides = besides.map(|besides| workspace::root().join(besides));
            fs::remove_file(edition(version, besides.as_deref())?)?;
            let set = format!("k3s_{version}.update");
            fs::rename(folder.join(version).join(&set), updates().join(&set))?;
            fs::remove_dir_all(folder.join(version))?;
        }
    }
    Ok(disk)
}

/// Where the sets are.
pub(super) fn updates() -> PathBuf {
    folder().join("updates")
}

fn folder() -> PathBuf {
    workspace::target().join("edge-test")
}
