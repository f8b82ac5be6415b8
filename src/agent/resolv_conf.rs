//! Which resolv.conf pods inherit.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k3s_files::{self as files, FileError};

/// The host's own, and systemd-resolved's real one where the host's names only its stub.
const CANDIDATES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What pods get where the host has no name server that they could reach: k3s' own last resort.
const FALLBACK: &str = "nameserver 8.8.8.8\n";

/// What follows where the host has none for pods, and what to do.
pub const NO_RESOLV_CONF: &str = "No name server of the host's serves pods (/etc/resolv.conf names none that they could reach: loopback \
                                  and link-local addresses are the pod's own), so pods ask 8.8.8.8: name a file with --resolv-conf.";

/// The user's file; else the first of the host's whose name servers are all reachable from a pod, if there is one.
pub fn resolv_conf_for_pods(given: Option<&Path>) -> Option<PathBuf> {
    let serves = |path: &&&str| fs::read_to_string(path).is_ok_and(|text| serves_pods(&text));
    given.map(Path::to_path_buf).or_else(|| CANDIDATES.iter().find(serves).map(PathBuf::from))
}

/// Writes one of ours to `fallback`, as k3s does.
pub(crate) fn fall_back(fallback: &Path) -> Result<(), FileError> {
    if let Some(dir) = fallback.parent() {
        files::create_directory(dir, 0o700)?;
    }
    files::write(fallback, FALLBACK.as_bytes(), 0o644).map(drop)
}

/// At least one name server, and none that means something else inside a pod's network namespace. As for every reader of the file, a line
/// is its first words: what follows is often a comment.
fn serves_pods(resolv_conf: &str) -> bool {
    let mut servers = resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|keyword| *keyword == "nameserver").and(words.next())
        })
        .map(str::parse::<IpAddr>)
        .peekable();
    servers.peek().is_some() && servers.all(|address| address.is_ok_and(is_global_unicast))
}

/// Go's sense of the word: private addresses count.
fn is_global_unicast(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_resolver_on_loopback_is_of_no_use_to_pods() {
        assert!(serves_pods("search lan\nnameserver 192.168.1.1\n"));
        assert!(!serves_pods("nameserver 127.0.0.53\n"));
        assert!(!serves_pods("nameserver 192.168.1.1\nnameserver fe80::1\n"));
        assert!(!serves_pods("search lan\n"));
        assert!(serves_pods("nameserver 192.168.1.1 # the router\n\tnameserver\t192.168.1.2 ; too\n"));
        assert!(!serves_pods("nameserver 127.0.0.53 # systemd-resolved\n"));
        assert!(!serves_pods("# nameserver 192.168.1.1\nnameservers 192.168.1.1\nnameserver\n"));
    }

    #[test]
    fn the_users_file_is_taken_as_it_is() {
        assert_eq!(resolv_conf_for_pods(Some(Path::new("/etc/my"))).as_deref(), Some(Path::new("/etc/my")));
    }
}
