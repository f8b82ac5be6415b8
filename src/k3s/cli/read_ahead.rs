//! How much the kernel reads of a file where one page of it is wanted.
//!
//! A machine of little memory reads its programs' code again and again. Where the kernel reads ahead by megabytes, each piece of it pushes
//! out many others.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// From here on it is too much for a small node, KiB. The kernel's own is 128.
const MUCH: u64 = 1024;

/// A sentence if the disk with this file reads far ahead.
pub(super) fn too_far(file: &Path) -> Option<String> {
    let device = fs::metadata(file).ok()?.dev();
    let setting =
        format!("/sys/class/bdi/{}:{}/read_ahead_kb", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let kib = fs::read_to_string(&setting).ok()?.trim().parse().ok()?;
    sentence(kib, &setting)
}

fn sentence(kib: u64, setting: &str) -> Option<String> {
    (kib >= MUCH).then(|| {
        format!(
            "the kernel reads {kib} KiB of a program where a page is wanted, for which a small node has no memory; write 128 to {setting}, by a udev rule for example"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_is_fine() {
        assert_eq!(sentence(128, "x"), None);
        assert!(
            sentence(8192, "/sys/class/bdi/254:0/read_ahead_kb").unwrap().contains("write 128 to /sys/class/bdi/254:0")
        );
    }
}
