//! One version: its root, the hashes of it, and the kernel that starts this root and no other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{
    tools::{PLACE, Tools},
    tree::{NAME, Tree},
};
use crate::{digest::Inputs, workspace};

/// zstd -19 took more than two minutes to make; with LZ4 the root is small enough.
const COMPRESSION: [&str; 2] = ["-zlz4hc", "-C65536"];

pub(super) struct Slot {
    pub(super) root: PathBuf,
    pub(super) verity: PathBuf,
    pub(super) kernel: PathBuf,
}

impl Slot {
    pub(super) fn make(tools: &Tools, tree: &Tree, version: &str, work: &Path) -> Result<Self> {
        let [root, verity, kernel] =
            ["root.raw", "verity.raw", "efi"].map(|ending| format!("{NAME}_{version}.{ending}"));
        let at = |file: &str| format!("{PLACE}/{file}");

        let root_uuid = uuid(&derived("root", version));
        let (to, from) = (at(&root), at(tree.name));
        tools.run(
            work,
            &[&["mkfs.erofs", "--quiet", "-T0", "-U", &root_uuid], &COMPRESSION[..], &[&to, &from]].concat(),
        )?;

        let salt = format!("--salt={}", derived("salt", version));
        let verity_uuid = uuid(&derived("verity", version));
        let identity = format!("--uuid={verity_uuid}");
        let hash_file = format!("--root-hash-file={}", at("roothash"));
        tools.run(work, &["veritysetup", "format", &salt, &identity, &hash_file, &at(&root), &at(&verity)])?;
        let hash = fs::read_to_string(work.join("roothash")).context("veritysetup wrote no hash")?.trim().to_owned();
        ensure!(hash.len() == 64 && hash.is_ascii(), "veritysetup wrote {hash:?}, which is no SHA-256");

        let own = fs::read_to_string(workspace::root().join("images/edge/cmdline"))?;
        // By what is in the partitions: the initrd's udev links them so.
        let command_line = format!(
            "--cmdline=roothash={hash} systemd.verity_root_data=/dev/slot/{root_uuid} systemd.verity_root_hash=/dev/slot/{verity_uuid} \
             root=/dev/mapper/root {}",
            own.trim()
        );
        let [linux, initrd] = ["linux", "initrd"].map(|file| format!("--{file}={}", at(file)));
        let release = format!("--os-release=@{}/usr/lib/os-release", at(tree.name));
        let (uname, output) = (format!("--uname={}", tree.kernel), format!("--output={}", at(&kernel)));
        tools.run(work, &["ukify", "build", &linux, &initrd, &release, &uname, &command_line, &output])?;
        Ok(Self { root: work.join(root), verity: work.join(verity), kernel: work.join(kernel) })
    }

    pub(super) fn files(&self) -> [&Path; 3] {
        [&self.root, &self.verity, &self.kernel]
    }
}

/// 64 hexadecimal digits that are the same each time.
fn derived(what: &str, version: &str) -> String {
    let mut inputs = Inputs::default();
    inputs.part(what, version.as_bytes());
    inputs.hex()
}

/// The first 32 hexadecimal digits as a UUID is written.
fn uuid(digits: &str) -> String {
    let part = |from: usize, to: usize| &digits[from..to];
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_hash_is_a_uuid() {
        assert_eq!(uuid("0123456789abcdef0123456789abcdef"), "01234567-89ab-cdef-0123-456789abcdef");
    }

    #[test]
    fn versions_have_identities_of_their_own_that_stay() {
        assert_eq!(derived("salt", "1"), derived("salt", "1"));
        assert_ne!(derived("salt", "1"), derived("salt", "2"));
        assert_ne!(derived("salt", "1"), derived("root", "1"));
    }
}
