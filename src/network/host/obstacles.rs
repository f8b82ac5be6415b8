//! What about the host keeps pods from starting, or them and the host from reaching anything. It may pass while a node runs.

use std::path::Path;

use ipnet::IpNet;

use super::{ProxyMode, Warning, forward};
use crate::{Family, Underlay, address::AddressError};

/// What containerd makes pods' own file of.
const HOSTS: &str = "/etc/hosts";

/// What stands in the way at this moment, in the network namespace of the calling thread.
pub async fn obstacles(mode: ProxyMode, cluster_cidrs: &[IpNet]) -> Vec<Warning> {
    let forward = forward::check(mode, cluster_cidrs).await;
    forward.into_iter().chain(hosts_file(HOSTS.as_ref())).chain(default_route().await).collect()
}

fn hosts_file(path: &Path) -> Option<Warning> {
    let error = std::fs::File::open(path).err()?;
    let path = path.display();
    Some(Warning {
        key: "hosts-file",
        sentence: format!(
            "{path} cannot be read ({error}), so containerd starts no pod that has a network of its own: make it, with the line \
             `127.0.0.1 localhost`."
        ),
    })
}

async fn default_route() -> Option<Warning> {
    match Underlay::of_default_route(Family::V4).await {
        Err(AddressError::NoDefaultRoute { .. }) => Some(Warning {
            key: "default-route",
            sentence: "The host has no IPv4 default route, so pods reach nothing outside of the cluster, and programs of the host no \
                       Service: add one with `ip route add default via GATEWAY`, or if there is no gateway, let one lead to an \
                       interface of its own, such as `ip link add dummy0 type dummy`."
                .to_owned(),
        }),
        // Whatever else is wrong is told where the address is needed.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    #[test]
    fn a_missing_hosts_file_is_named_until_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let sentence = hosts_file(&path).unwrap().sentence;
        assert!(sentence.contains("hosts cannot be read (No such file") && sentence.contains("127.0.0.1 localhost"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(hosts_file(&path), None);
    }

    #[test]
    fn a_host_without_a_default_route_is_told_so() {
        in_namespace(async || {
            assert_eq!(default_route().await.unwrap().key, "default-route");
            sh("ip link add b0 type bridge
                ip link set b0 up
                ip address add 203.0.113.254/31 dev b0
                ip route add default via 203.0.113.255 dev b0")
            .await;
            assert_eq!(default_route().await, None);
        });
    }
}
