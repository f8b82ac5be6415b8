//! One test run's place on the machine, and the removal of what killed runs left behind.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::cgroup::Cgroup;

/// A folder on a real disk for the disks of a run's machines, with a name that no other run has. The folder goes on drop.
///
/// Whether a run is alive is told by the lock on its folder, which the kernel lets go however the process ends.
#[derive(Debug)]
pub(crate) struct Run {
    id: String,
    folder: PathBuf,
    _lock: File,
}

impl Run {
    /// Starts a run, and first removes the folders and cgroups of runs that are no more.
    pub(crate) fn start() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        if !geteuid().is_root() {
            bail!("cluster tests make namespaces, mounts and cgroups: run them as root");
        }
        let parent = parent();
        create(&parent)?;
        // Runs that begin at the same time do so one after the other: none takes a half-made one for dead.
        let door = File::open(&parent).with_context(|| format!("cannot open {}", parent.display()))?;
        door.lock().with_context(|| format!("cannot lock {}", parent.display()))?;
        remove_dead(&parent)?;
        let id = format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = parent.join(&id);
        create(&folder)?;
        let lock = folder.join("lock");
        let file = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", lock.display()))?;
        Ok(Self { id, folder, _lock: file })
    }

    /// What the cgroup of the machine `name` is called.
    pub(crate) fn cgroup_of(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    /// Where the machine `name` has its disk.
    pub(crate) fn disk_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("Cannot remove {}: {error}.", self.folder.display());
        }
    }
}

/// `target/cluster-tests`: on the disk that holds the checkout, since containerd cannot stack its layers on an overlay.
fn parent() -> PathBuf {
    crate::target().join("cluster-tests")
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn remove_dead(parent: &Path) -> Result<()> {
    let runs = fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))?;
    for folder in runs.flatten().map(|entry| entry.path()) {
        let Some(id) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        if File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_err()) {
            continue;
        }
        for name in Cgroup::names_with(&format!("{id}-"))? {
            Cgroup::new(&name)?.remove()?;
        }
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
