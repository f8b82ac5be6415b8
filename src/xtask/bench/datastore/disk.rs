//! A disk that nothing but the store of a trial writes to: a file system on a loop device, whose sectors the kernel counts.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use cluster_tests::Node;

use crate::process::succeed;

/// Where the file system is mounted in the node.
pub(super) const MOUNT: &str = "/var/store";
const IMAGE: &str = "/var/disk.img";
const MEBIBYTES: u32 = 1024;
/// The kernel's, in /sys, whatever the device's are.
const SECTOR: f64 = 512.0;

/// A file of a node's disk, all of which is written once: else the first store to touch a block would pay for its allocation.
pub(super) struct Disk<'a>(&'a Node);

/// An empty file system on it. It goes with the node, however that ends: the device lets the file go when it is unmounted.
pub(super) struct FileSystem<'a> {
    node: &'a Node,
    /// The name of the loop device.
    device: String,
    /// What the device had written for others before: its figures outlive them.
    before: f64,
}

impl<'a> Disk<'a> {
    pub(super) fn create(node: &'a Node) -> Self {
        node.succeed(&format!("dd if=/dev/zero of={IMAGE} bs=1M count={MEBIBYTES} conv=fsync status=none"));
        Self(node)
    }

    /// Makes an empty file system and mounts it. Nothing of it is left to be initialised in the background.
    pub(super) fn format(&self) -> Result<FileSystem<'a>> {
        let device = self.0.succeed(&format!(
            "mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 {IMAGE} && mkdir -p {MOUNT} || exit
             device=$(losetup --find --show --direct-io=on {IMAGE}) || exit
             mount -o noinit_itable $device {MOUNT}
             mounted=$?
             losetup --detach $device
             echo ${{device#/dev/}}
             exit $mounted"
        ));
        let mut files = FileSystem { node: self.0, device: device.trim().to_owned(), before: 0.0 };
        files.before = files.sync()?;
        Ok(files)
    }
}

impl FileSystem<'_> {
    /// Waits until everything is on the device, and returns how many bytes were written to it since it was mounted.
    pub(super) fn sync(&self) -> Result<f64> {
        succeed(Command::new("sync").arg("--file-system").arg(self.node.path(MOUNT)))?;
        let path = format!("/sys/block/{}/stat", self.device);
        let stat = fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))?;
        let sectors = sectors_written(&stat).with_context(|| format!("Cannot understand {path}: {stat}"))?;
        Ok(sectors * SECTOR - self.before)
    }

    /// As [`FileSystem::sync`], once nothing is written any more: the journal is written to its place too.
    pub(super) fn seal(&self) -> Result<f64> {
        self.node.succeed(&format!("mount -o remount,ro {MOUNT}"));
        self.sync()
    }
}

impl Drop for FileSystem<'_> {
    fn drop(&mut self) {
        // Lazily: after a failure the store may still be there, and goes with the node.
        self.node.execute(&format!("umount --lazy {MOUNT}"));
    }
}

/// See "Block layer statistics in /sys/block/<dev>/stat" of the kernel's documentation.
fn sectors_written(stat: &str) -> Option<f64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seventh_figure_is_what_was_written() {
        let stat = "     446        0     7336       63      176      274     4808      112        0      148      217        0";
        assert_eq!(sectors_written(stat), Some(4808.0));
        assert_eq!(sectors_written(""), None);
    }
}
