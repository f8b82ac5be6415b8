//! The programs that make images, of Debian's packages: the host's are often too old.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{debian, workspace};

/// Where the folder that they work in is for them.
pub(super) const PLACE: &str = "/mnt";
/// Runs a program in the tree `$1`, which has the folder of work `$2` at [`PLACE`]; the mounts go with the namespace.
const ENTER: &str = r#"tree=$1 work=$2; shift 2
mount --bind "$work" "$tree/mnt"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
exec chroot "$tree" "$@""#;

/// A tree with mkfs.erofs, systemd-repart, ukify, veritysetup and mtools.
pub(super) struct Tools(PathBuf);

impl Tools {
    pub(super) fn cached(cache: &Path) -> Result<Self> {
        let list = workspace::root().join("images/edge/debian/tools");
        let packages = fs::read_to_string(&list).with_context(|| format!("Cannot read {}", list.display()))?;
        let debian = debian::Tree { packages: &packages, customize: None };
        Ok(Self(debian.cached(cache, "tools")?))
    }

    /// Runs a program that sees `work` at [`PLACE`]; what it wrote is shown if it fails.
    pub(super) fn run(&self, work: &Path, program: &[&str]) -> Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh"]).arg(&self.0).arg(work);
        command.env("SOURCE_DATE_EPOCH", debian::EPOCH.to_string()).args(program).stdin(Stdio::null());
        let output = command.output().context("Cannot run unshare: install util-linux")?;
        ensure!(
            output.status.success(),
            "`{}` failed: {}{}",
            program.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A file of theirs.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}
