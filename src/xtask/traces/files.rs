//! Files outside of the node's own folder, and kernel settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Before, Trace};

/// Folders that a node has to itself: a machine where something is in them has, or had, a node already.
const OWNED: [&str; 9] = [
    "/etc/rancher",
    "/run/containerd/runc/k8s.io",
    "/run/flannel",
    "/run/k3s",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/lib/rancher/k3s",
    "/var/log/containers",
    "/var/log/pods",
];

/// Folders that a node makes where there are none, for others to use too.
const SHARED: [&str; 6] =
    ["/run/containerd", "/run/containerd/fifo", "/run/containerd/runc", "/run/containerd/s", "/run/netns", "/run/nri"];

/// Where containerd has sockets, its own and its shims', that no setting of ours moves.
const SOCKETS: [&str; 2] = ["/run/containerd/s", "/run/nri"];

/// What `k3s`, kubelet and kube-proxy set, below `/proc/sys`.
const SETTINGS: [&str; 13] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-iptables",
    "net/core/devconf_inherit_init_net",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];
/// Where each interface's forwarding is set; `all` sets the others too.
const PER_INTERFACE: [&str; 2] = ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"];

/// The folders that a node has to itself.
pub(super) fn owned() -> impl Iterator<Item = &'static Path> {
    OWNED.iter().map(Path::new)
}

/// What is in folders of the node's own, dead sockets, and the folders themselves where they are empty and new.
pub(super) fn files(before: &Before) -> Result<Vec<Trace>> {
    let mut found = Vec::new();
    for folder in owned() {
        found.extend(entries(folder)?);
    }
    found.extend(sockets()?.into_iter().filter(|path| !before.files.contains(path) && is_dead_socket(path)));
    for folder in places().filter(|folder| !before.files.contains(*folder)) {
        if folder.is_dir() && entries(folder)?.is_empty() {
            found.push(folder.to_owned());
        }
    }
    Ok(found.into_iter().map(Trace::File).collect())
}

/// What [`Before`] has to know of them.
pub(super) fn files_present() -> Result<BTreeSet<PathBuf>> {
    let folders = places().filter(|folder| folder.exists()).map(Path::to_owned);
    Ok(folders.chain(sockets()?).collect())
}

/// Settings that are not as they were, those for all interfaces before those for one.
pub(super) fn settings(before: &Before) -> Result<Vec<Trace>> {
    let now = settings_now()?;
    let mut changed: Vec<_> = before
        .settings
        .iter()
        .filter(|(path, value)| now.get(*path).is_some_and(|now| now != *value))
        .map(|(path, value)| Trace::Setting { path: path.clone(), value: value.clone() })
        .collect();
    changed.sort_by_key(|trace| !matches!(trace, Trace::Setting { path, .. } if is_for_all(path)));
    Ok(changed)
}

/// The values of all settings that a node changes.
pub(super) fn settings_now() -> Result<BTreeMap<PathBuf, String>> {
    let mut paths: Vec<PathBuf> = SETTINGS.iter().map(|name| Path::new("/proc/sys").join(name)).collect();
    for folder in PER_INTERFACE {
        paths.extend(entries(Path::new(folder))?.into_iter().map(|interface| interface.join("forwarding")));
    }
    // Those of modules that are not loaded, or of interfaces that are gone, are not there.
    let read = |path: PathBuf| fs::read_to_string(&path).ok().map(|value| (path, value.trim().to_owned()));
    Ok(paths.into_iter().filter_map(read).collect())
}

fn is_for_all(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.ends_with("all"))
}

/// Folders that a node makes, each before those that it lies in.
fn places() -> impl Iterator<Item = &'static Path> {
    let mut places: BTreeSet<&Path> = BTreeSet::new();
    for folder in OWNED.into_iter().chain(SHARED).map(Path::new) {
        // `/run`, `/etc`, `/var/lib` and `/var/log` are the system's.
        let depth = if folder.starts_with("/var") { 4 } else { 3 };
        places.extend(folder.ancestors().filter(|ancestor| ancestor.components().count() >= depth));
    }
    places.into_iter().rev()
}

fn sockets() -> Result<Vec<PathBuf>> {
    Ok(SOCKETS.iter().map(|folder| entries(Path::new(folder))).collect::<Result<Vec<_>>>()?.concat())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("Cannot list {}", folder.display())),
    }
}

/// Nobody listens there any more.
fn is_dead_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_folder_comes_before_what_it_lies_in_and_system_folders_not_at_all() {
        let places: Vec<_> = places().collect();
        let at = |path: &str| places.iter().position(|place| *place == Path::new(path));
        assert!(at("/var/lib/rancher/k3s") < at("/var/lib/rancher") && at("/var/lib/rancher").is_some());
        assert!(at("/run/containerd/runc/k8s.io") < at("/run/containerd") && at("/run/containerd").is_some());
        assert_eq!([at("/run"), at("/etc"), at("/var/lib"), at("/var/log"), at("/var")], [None; 5]);
    }

    #[test]
    fn a_socket_is_dead_when_its_listener_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_dead_socket(&path));
        drop(listener);
        assert!(is_dead_socket(&path));
        assert!(!is_dead_socket(folder.path()));
    }
}
