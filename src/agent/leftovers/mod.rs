//! What a node leaves on its host when k3s stops, since pods outlive it: taken away where somebody wants the host as it was.
//!
//! ```text
//! shims and their containers ─► mounts ─► network namespaces ─► devices, routes, rules ─► cgroups ─► /run/k3s
//! ```
//! State on disk stays: images, volumes, the database and what pods wrote. The next start finds it as after a reboot.

mod cgroups;
mod mounts;
mod processes;

use std::{fs, io, path::Path, time::Duration};

use k3s_components::Paths;
use nix::mount::{MntFlags, umount2};

use crate::{error::chain, network::SUBNET_ENV};

/// Where CNI plugins and containerd have the network namespaces of pods.
const NETNS: &str = "/run/netns";
/// What kubelet mounts for pods.
const KUBELET: [&str; 2] = ["/var/lib/kubelet/pods", "/var/lib/kubelet/plugins"];
/// How long killed processes may take to be gone, on a disk that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found, and what could not be taken away.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes of pods, their shims included.
    pub processes: usize,
    /// Mounts below `/run/k3s` and kubelet's folders, and those of network namespaces.
    pub mounts: usize,
    /// A sentence for each thing that is still there.
    pub remaining: Vec<String>,
}

/// Takes away what pods of a node at `paths` have left on the host. k3s must not run: hold its locks meanwhile.
pub async fn remove_leftovers(paths: &Paths) -> Leftovers {
    let mut found = Leftovers::default();
    match processes::kill_pods(&paths.containerd_socket(), PATIENCE).await {
        Ok(processes) => found.processes = processes,
        Err(error) => found.remaining.push(format!("processes of pods ({error})")),
    }
    let folders = KUBELET.iter().map(Path::new).chain([paths.run()]);
    match mounts::unmount_all(|at| folders.clone().any(|folder| at.starts_with(folder)) || is_pods_netns(at)) {
        Ok((mounts, remaining)) => {
            found.mounts = mounts;
            found.remaining.extend(remaining);
        }
        Err(error) => found.remaining.push(format!("mounts ({error})")),
    }
    note(&mut found, NETNS, remove_netns());
    let network = k3s_network::remove_leftovers(Path::new(SUBNET_ENV)).await;
    found.remaining.extend(network.iter().map(|error| chain(error)));
    note(&mut found, SUBNET_ENV, removed(fs::remove_file(SUBNET_ENV)));
    found.remaining.extend(cgroups::remove_all().await);
    if found.remaining.is_empty() {
        note(&mut found, paths.run(), removed(fs::remove_dir_all(paths.run())));
    }
    found
}

/// A network namespace that containerd made for a pod.
fn is_pods_netns(path: &Path) -> bool {
    let name = path.strip_prefix(NETNS).ok().and_then(Path::to_str);
    name.is_some_and(|name| name.starts_with("cni-") && !name.contains('/'))
}

fn remove_netns() -> io::Result<()> {
    let entries = match fs::read_dir(NETNS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if is_pods_netns(&path) {
            fs::remove_file(path)?;
        }
    }
    if fs::read_dir(NETNS)?.next().is_none() {
        // containerd mounts it over itself, as `ip netns` does, which makes it again when it needs it.
        while umount2(NETNS, MntFlags::empty()).is_ok() {}
        fs::remove_dir(NETNS)?;
    }
    Ok(())
}

fn note(found: &mut Leftovers, what: impl AsRef<Path>, result: io::Result<()>) {
    if let Err(error) = result {
        found.remaining.push(format!("{} ({error})", what.as_ref().display()));
    }
}

fn removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_pods_are_ours() {
        assert!(is_pods_netns(Path::new("/run/netns/cni-0b6f2a34-1f4e")));
        for other in ["/run/netns/mine", "/run/netns/cni-a/b", "/run/other/cni-a", "/run/netns"] {
            assert!(!is_pods_netns(Path::new(other)), "{other}");
        }
    }
}
