//! What a machine is updated with: the parts of one version in one file, with a manifest that minisign has signed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use k3s_os::{Content, FORMAT, MANIFEST, Manifest, Part, SIGNATURE};
use tar::{Builder, Header};

use super::{
    slot::Slot,
    tools::{PLACE, Tools},
    tree::NAME,
};
use crate::{debian, digest};

/// Whose updates a machine takes: a secret key of minisign without a password, as `minisign -G -W` makes it.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a>(pub(crate) &'a Path);

/// Where tools find it while they work.
const SECRET: &str = "update.key";
const PUBLIC: &str = "update.pub";

impl Key<'_> {
    /// Its public half, in the folder of work.
    pub(super) fn public(self, tools: &Tools, work: &Path) -> Result<PathBuf> {
        fs::copy(self.0, work.join(SECRET)).with_context(|| format!("Cannot read {}", self.0.display()))?;
        let (secret, public) = (format!("{PLACE}/{SECRET}"), format!("{PLACE}/{PUBLIC}"));
        tools.run(work, &["minisign", "-R", "-s", &secret, "-p", &public])?;
        Ok(work.join(PUBLIC))
    }

    /// Makes a key for tests.
    pub(super) fn make(tools: &Tools, folder: &Path) -> Result<PathBuf> {
        let (secret, public) = (format!("{PLACE}/{SECRET}"), format!("{PLACE}/{PUBLIC}"));
        tools.run(folder, &["minisign", "-G", "-f", "-W", "-s", &secret, "-p", &public])?;
        Ok(folder.join(SECRET))
    }
}

/// Makes the set of what is in `slot`. The secret key is in the folder of work.
pub(super) fn make(tools: &Tools, slot: &Slot, version: &str, work: &Path) -> Result<PathBuf> {
    let parts = [(Part::Root, &slot.root), (Part::Verity, &slot.verity), (Part::Kernel, &slot.kernel)];
    let content = |file: &Path| -> Result<Content> {
        Ok(Content { size: fs::metadata(file)?.len(), sha256: digest::of_entry(file)? })
    };
    let manifest = Manifest {
        format: FORMAT,
        version: version.parse()?,
        architecture: std::env::consts::ARCH.to_owned(),
        root: content(&slot.root)?,
        verity: content(&slot.verity)?,
        kernel: content(&slot.kernel)?,
    };
    fs::write(work.join(MANIFEST), serde_json::to_vec(&manifest)?)?;
    let (secret, signed) = (format!("{PLACE}/{SECRET}"), format!("{PLACE}/{MANIFEST}"));
    // The time would be part of it otherwise.
    let comment = format!("{NAME} {version}");
    tools.run(work, &["minisign", "-S", "-s", &secret, "-m", &signed, "-t", &comment])?;

    let path = work.join(format!("{NAME}_{version}.update"));
    let mut archive = Builder::new(File::create(&path)?);
    for name in [MANIFEST, SIGNATURE] {
        append(&mut archive, name, &work.join(name))?;
    }
    for (part, file) in parts {
        append(&mut archive, part.name(), file)?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(path)
}

fn append(archive: &mut Builder<File>, name: &str, file: &Path) -> Result<()> {
    let opened = File::open(file).with_context(|| format!("Cannot read {}", file.display()))?;
    let mut header = Header::new_ustar();
    header.set_size(opened.metadata()?.len());
    header.set_mode(0o644);
    header.set_mtime(debian::EPOCH);
    archive.append_data(&mut header, name, opened)?;
    Ok(())
}
