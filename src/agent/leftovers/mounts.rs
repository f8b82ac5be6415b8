//! Mounts that pods leave.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

/// Unmounts what is mounted where `is_meant` says, the last first; how many those were, and what is still there.
///
/// # Errors
/// The kernel's list cannot be read.
pub(super) fn unmount_all(is_meant: impl Fn(&Path) -> bool) -> io::Result<(usize, Vec<String>)> {
    let mut mounts: Vec<_> =
        mounted(&fs::read("/proc/self/mountinfo")?).into_iter().filter(|path| is_meant(path)).collect();
    mounts.reverse();
    let mut remaining = Vec::new();
    for path in &mounts {
        let unmounted = match umount2(path, MntFlags::empty()) {
            // Somebody looks into it: it goes with the last who does.
            Err(Errno::EBUSY) => umount2(path, MntFlags::MNT_DETACH),
            unmounted => unmounted,
        };
        match unmounted {
            // One above it took it along.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => remaining.push(format!("the mount {} ({errno})", path.display())),
        }
    }
    Ok((mounts.len(), remaining))
}

/// The mount points in a `mountinfo`, in the order in which they were made (proc_pid_mountinfo(5)).
fn mounted(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| Some(unescaped(line.split(|byte| *byte == b' ').nth(4)?))).collect()
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_what_is_escaped() {
        let text = b"22 1 0:21 / /sys rw - sysfs sysfs rw\n\
            90 22 0:50 / /run/k3s/a\\040b rw shared:5 - overlay overlay rw\n91 22 0:3 net:[1] /run/netns/cni-1 rw - nsfs nsfs rw\n";
        assert_eq!(mounted(text), ["/sys", "/run/k3s/a b", "/run/netns/cni-1"].map(PathBuf::from));
        assert_eq!(unescaped(b"a\\09\\1"), PathBuf::from("a\\09\\1"));
    }
}
