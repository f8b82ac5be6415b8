//! System extensions: EROFS images that systemd lays over /usr and /etc.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{component::Scratch, folder, workspace};

/// Any operating system: nothing of the host is in it but its C library, which is older than ours on none we support. systemd reads its
/// units again once they are there.
const RELEASE: &str = "ID=_any\nEXTENSION_RELOAD_MANAGER=1\n";
/// Extensions tell apart by content; their file systems need no identity of their own.
const UUID: &str = "00000000-0000-0000-0000-000000000000";
/// Units of the package.
const UNITS: [&str; 3] = ["k3s.service", "k3s-agent.service", "cri-containerd-.scope.d/k3s.conf"];
/// A place for a mount, which nobody can make in what is read-only.
const NODE_PASSWORD: &str = "etc/rancher/node";
/// Where everybody looks for the administrator's kubeconfig: a link to where k3s.service.d/extension.conf has it written.
const KUBECONFIG: &str = "etc/rancher/k3s/k3s.yaml";

/// Writes both, and returns where they are: for /usr, for /etc.
pub(crate) fn pack(dist: &Path, folder: &Path, name: &str) -> Result<[PathBuf; 2]> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let scratch = Scratch::create(folder, "extension")?;
    let (usr, etc) = (scratch.0.join("sysext"), scratch.0.join("confext"));
    let images = workspace::root().join("images");
    folder::copy(dist, &usr.join("usr"))?;
    for unit in UNITS {
        let text = fs::read_to_string(images.join("systemd").join(unit))?;
        write(&usr.join("usr/lib/systemd/system").join(unit), &text)?;
    }
    folder::copy(&images.join("extension/usr"), &usr.join("usr"))?;
    folder::copy(&images.join("extension/etc"), &etc.join("etc"))?;
    fs::create_dir_all(etc.join(NODE_PASSWORD))?;
    fs::create_dir_all(etc.join(KUBECONFIG).parent().expect("a joined path has a parent"))?;
    symlink("/var/lib/rancher/k3s/k3s.yaml", etc.join(KUBECONFIG))?;
    // systemd before 256 takes the ending of the file's name as a part of the extension's.
    for name in [name.to_owned(), format!("{name}.sysext")] {
        write(&usr.join(format!("usr/lib/extension-release.d/extension-release.{name}")), RELEASE)?;
    }
    for name in [name.to_owned(), format!("{name}.confext")] {
        write(&etc.join(format!("etc/extension-release.d/extension-release.{name}")), RELEASE)?;
    }

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
