//! System extensions: EROFS images that systemd lays over /usr and /etc.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{component::Scratch, folder, workspace};

/// Any operating system: nothing of the host is in it but its C library, which is older than ours on none we support.
const RELEASE: &str = "ID=_any\n";
/// Extensions tell apart by content; their file systems need no identity of their own.
const UUID: &str = "00000000-0000-0000-0000-000000000000";
/// What a node loads at boot, when the kernel is not yet locked.
const MODULES: &str = "overlay\nnf_conntrack\nbr_netfilter\nvxlan\n";
const SYSCTL: &str = "net.ipv4.conf.all.forwarding = 1\nnet.bridge.bridge-nf-call-iptables = 1\n";

/// Writes both, and returns where they are: for /usr, for /etc.
pub(super) fn pack(dist: &Path, folder: &Path, name: &str) -> Result<[PathBuf; 2]> {
    let scratch = Scratch::create(&workspace::target(), "extension")?;
    let (usr, etc) = (scratch.0.join("sysext"), scratch.0.join("confext"));
    folder::copy(dist, &usr.join("usr"))?;
    for unit in ["k3s.service", "k3s-agent.service", "cri-containerd-.scope.d/k3s.conf"] {
        let from = workspace::root().join("images/systemd").join(unit);
        write(&usr.join("usr/lib/systemd/system").join(unit), &fs::read_to_string(&from)?)?;
    }
    write(&usr.join("usr/lib/modules-load.d/k3s.conf"), MODULES)?;
    write(&usr.join("usr/lib/sysctl.d/50-k3s.conf"), SYSCTL)?;
    write(&usr.join(format!("usr/lib/extension-release.d/extension-release.{name}.sysext")), RELEASE)?;

    // Switches the server on; what is written below /etc at run time needs a place beside it (docs/nixos.md).
    let wants = etc.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink("/usr/lib/systemd/system/k3s.service", wants.join("k3s.service"))?;
    write(&etc.join(format!("etc/extension-release.d/extension-release.{name}.confext")), RELEASE)?;

    let images = [folder.join(format!("{name}.sysext.raw")), folder.join(format!("{name}.confext.raw"))];
    for (tree, image) in [usr, etc].iter().zip(&images) {
        modes(tree)?;
        erofs(tree, image)?;
    }
    Ok(images)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().expect("a joined path has a parent"))?;
    fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
}

/// Modes that do not depend on the umask.
fn modes(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            modes(&entry.path())?;
        } else if kind.is_file() {
            let executable = entry.metadata()?.permissions().mode() & 0o111 != 0;
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
        }
    }
    Ok(())
}

fn erofs(tree: &Path, image: &Path) -> Result<()> {
    let mut make = Command::new("mkfs.erofs");
    make.args(["-zlz4hc,12", "-T0", "-x-1", "--all-root", "-U", UUID]).arg(image).arg(tree);
    let output = make.stdin(Stdio::null()).output().context("Cannot run mkfs.erofs: install erofs-utils")?;
    ensure!(output.status.success(), "mkfs.erofs failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
