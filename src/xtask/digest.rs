//! SHA-256 of files and folders.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::folder;

/// A hash over labelled parts. Lengths go in too, so that no two lists of parts hash alike.
#[derive(Default)]
pub(crate) struct Inputs(Sha256);

impl Inputs {
    pub(crate) fn part(&mut self, label: &str, content: &[u8]) {
        for bytes in [label.as_bytes(), content] {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
    }

    pub(crate) fn hex(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Every file below `folder` (path relative to it), with its SHA-256; a symbolic link counts as its target.
pub(crate) fn of_folder(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    folder::files(folder)?.into_iter().map(|file| Ok((file.clone(), of_entry(&folder.join(file))?))).collect()
}

/// Of one file, or of a symbolic link as its target.
pub(crate) fn of_entry(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    if path.is_symlink() {
        hash.update(fs::read_link(path)?.as_os_str().as_encoded_bytes());
    } else {
        let mut file = File::open(path).with_context(|| format!("Cannot read {}", path.display()))?;
        io::copy(&mut file, &mut DigestWriter(&mut hash))?;
    }
    Ok(hex(&hash.finalize()))
}

struct DigestWriter<'a>(&'a mut Sha256);

impl io::Write for DigestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
