//! Cgroups that pods, their shims and components leave: empty ones, in each hierarchy.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tokio::process::Command;

const MOUNT: &str = "/sys/fs/cgroup";
/// What kubelet and this process make at the root: kubelet's own tree by either driver, and where shims live.
const OURS: [&str; 3] = ["kubepods", "kubepods.slice", "k3s-shims"];
/// Names of the unified hierarchy beside those of v1.
const HYBRID: &str = "unified";

/// Removes them; a sentence for each that is still there.
pub(super) async fn remove_all() -> Vec<String> {
    if Path::new("/run/systemd/system").is_dir() {
        // With kubelet's systemd driver they are units. Where they are none, there is nothing to stop.
        let mut stop = Command::new("systemctl");
        stop.args(["stop", "kubepods.slice"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = stop.status().await;
    }
    let is_unified = statfs(MOUNT).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let roots = if is_unified { vec![PathBuf::from(MOUNT)] } else { hierarchies() };
    let trees = roots.iter().flat_map(|root| OURS.map(|name| root.join(name)));
    trees
        .filter_map(|tree| remove_tree(&tree).err().map(|error| format!("the cgroup {} ({error})", tree.display())))
        .collect()
}

/// The hierarchies of v1, and the unified one beside them.
fn hierarchies() -> Vec<PathBuf> {
    let entries = fs::read_dir(MOUNT).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir() && !path.is_symlink()).chain([Path::new(MOUNT).join(HYBRID)]).collect()
}

/// From the leaves up: a cgroup goes by its directory, once nothing is in it.
fn remove_tree(tree: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(tree) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(tree) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
