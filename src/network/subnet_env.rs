//! `subnet.env`: what the `flannel` CNI plugin reads to hand addresses to pods.

use std::{fmt::Write as _, fs, net::IpAddr, path::Path};

use ipnet::IpNet;
use k3s_files::{self as files, FileError};

/// The node's part of the pod network, in flannel's own file format (`/run/flannel/subnet.env`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Pod ranges of the cluster, one per family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Pod ranges of this node, one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// The MTU of pods' interfaces, in bytes.
    pub mtu: u32,
}

impl SubnetEnv {
    /// Writes the file at `path`, whole or not at all; says whether it changed.
    ///
    /// # Errors
    /// The folder cannot be made or is not writable.
    pub fn write(&self, path: &Path) -> Result<bool, FileError> {
        if let Some(folder) = path.parent() {
            files::create_directory(folder, 0o755)?;
        }
        files::write(path, self.text().as_bytes(), 0o644)
    }

    /// The pod ranges of the cluster that a file of this format at `path` names; none where there is no such file.
    pub fn clusters(path: &Path) -> Vec<IpNet> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            line.strip_prefix("FLANNEL_NETWORK=").or_else(|| line.strip_prefix("FLANNEL_IPV6_NETWORK="))
        });
        lines.filter_map(|cidr| cidr.parse().ok()).collect()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (infix, is_v4) in [("", true), ("IPV6_", false)] {
            let of_family = |cidrs: &[IpNet]| cidrs.iter().find(|cidr| cidr.addr().is_ipv4() == is_v4).copied();
            if let (Some(network), Some(subnet)) = (of_family(&self.cluster_cidrs), of_family(&self.pod_cidrs)) {
                let _ = writeln!(text, "FLANNEL_{infix}NETWORK={}", network.trunc());
                let _ = writeln!(text, "FLANNEL_{infix}SUBNET={}/{}", gateway(&subnet), subnet.prefix_len());
            }
        }
        // The masquerading is done, by our own rules: the bridge plugin must not add a set of its own for each pod.
        let _ = write!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ=true\n", self.mtu);
        text
    }
}

/// The bridge's address: the first of the range.
fn gateway(subnet: &IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => IpAddr::V4((u32::from(network) | 1).into()),
        IpAddr::V6(network) => IpAddr::V6((u128::from(network) | 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(cidrs: &[&str]) -> Vec<IpNet> {
        cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()
    }

    #[test]
    fn one_family() {
        let env = SubnetEnv { cluster_cidrs: cidrs(&["10.42.0.0/16"]), pod_cidrs: cidrs(&["10.42.3.0/24"]), mtu: 1450 };
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(env.text(), text);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flannel/subnet.env");
        assert!(env.write(&path).unwrap());
        assert!(!env.write(&path).unwrap());
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }

    #[test]
    fn both_families() {
        let env = SubnetEnv {
            cluster_cidrs: cidrs(&["10.42.0.0/16", "fd42::/48"]),
            pod_cidrs: cidrs(&["10.42.0.0/24", "fd42::/64"]),
            mtu: 1430,
        };
        let text = env.text();
        assert!(text.contains("FLANNEL_IPV6_NETWORK=fd42::/48\nFLANNEL_IPV6_SUBNET=fd42::1/64\n"), "{text}");
    }
}
