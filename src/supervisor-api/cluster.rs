//! What a node has to know of its cluster.

use std::net::{IpAddr, Ipv4Addr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The fields of k3s' Go structure `config.Control` that concern a node, under their names there. Servers tell more, and nodes pass over it.
///
/// What is optional, or has a default, not every release of k3s tells.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClusterDocument {
    /// The first of [`cluster_ip_ranges`](Self::cluster_ip_ranges).
    #[serde(rename = "ClusterIPRange")]
    pub cluster_ip_range: Option<IpNetDocument>,
    /// Where pods have their addresses.
    #[serde(rename = "ClusterIPRanges")]
    pub cluster_ip_ranges: Option<Vec<IpNetDocument>>,
    /// The first of [`service_ip_ranges`](Self::service_ip_ranges).
    #[serde(rename = "ServiceIPRange")]
    pub service_ip_range: Option<IpNetDocument>,
    /// Where Services have theirs.
    #[serde(rename = "ServiceIPRanges")]
    pub service_ip_ranges: Option<Vec<IpNetDocument>>,
    /// The ports that Services may have on nodes.
    pub service_node_port_range: PortRangeDocument,
    /// The first of [`cluster_dnss`](Self::cluster_dnss).
    #[serde(rename = "ClusterDNS")]
    pub cluster_dns: Option<IpAddr>,
    /// Where pods ask for names.
    #[serde(rename = "ClusterDNSs")]
    pub cluster_dnss: Option<Vec<IpAddr>>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// How packets reach pods of other nodes.
    pub flannel_backend: String,
    /// Whether pods' IPv6 addresses are translated on their way out.
    #[serde(default, rename = "FlannelIPv6Masq")]
    pub flannel_ipv6_masq: bool,
    /// Whether nodes reach each other by their external addresses.
    #[serde(default, rename = "FlannelExternalIP")]
    pub flannel_external_ip: bool,
    /// What servers reach through nodes' tunnels; there was no choice before this field.
    pub egress_selector_mode: Option<String>,
    /// Whether nodes are without kube-proxy.
    #[serde(default)]
    pub disable_kube_proxy: bool,
    /// Whether nodes enforce no network policies.
    #[serde(default, rename = "DisableNPC")]
    pub disable_npc: bool,
    /// Whether somebody else than the servers sets nodes' addresses.
    #[serde(default, rename = "DisableCCM")]
    pub disable_ccm: bool,
    /// Whether Services are not served at nodes' addresses.
    #[serde(default, rename = "DisableServiceLB")]
    pub disable_service_lb: bool,
    /// The registry that packaged images are taken from; theirs if empty.
    pub system_default_registry: Option<String>,
    /// Whether nodes show what they count.
    #[serde(default)]
    pub supervisor_metrics: bool,
    /// The least version of TLS, by Go's name; empty for 1.2.
    #[serde(default, rename = "MinTLSVersion")]
    pub min_tls_version: String,
    /// The suites of TLS 1.2, by Go's names.
    pub cipher_suites: Option<Vec<String>>,
    /// Where nodes ask servers.
    pub supervisor_port: u16,
    /// Where everybody else does.
    #[serde(rename = "HTTPSPort")]
    pub https_port: u16,
}

/// An address range as Go prints its `net.IPNet`: the mask is bytes, and bytes are base64.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpNetDocument {
    #[serde(rename = "IP")]
    ip: IpAddr,
    mask: String,
}

/// apimachinery's `PortRange`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortRangeDocument {
    /// The first port.
    pub base: u16,
    /// How many ports there are.
    pub size: u32,
}

/// An address with a mask that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an address range")]
pub struct NotARange(String);

impl From<&IpNet> for IpNetDocument {
    fn from(net: &IpNet) -> Self {
        let mask = match net.netmask() {
            IpAddr::V4(mask) => BASE64_STANDARD.encode(mask.octets()),
            IpAddr::V6(mask) => BASE64_STANDARD.encode(mask.octets()),
        };
        Self { ip: net.network(), mask }
    }
}

impl TryFrom<&IpNetDocument> for IpNet {
    type Error = NotARange;

    fn try_from(document: &IpNetDocument) -> Result<Self, NotARange> {
        let mask = BASE64_STANDARD.decode(&document.mask).ok().and_then(|mask| match mask.len() {
            4 => <[u8; 4]>::try_from(mask).map(|octets| IpAddr::V4(Ipv4Addr::from(octets))).ok(),
            16 => <[u8; 16]>::try_from(mask).map(IpAddr::from).ok(),
            _ => None,
        });
        mask.and_then(|mask| Self::with_netmask(document.ip, mask).ok())
            .ok_or_else(|| NotARange(format!("{}/{}", document.ip, document.mask)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn masks_are_bytes_in_base64_and_back() {
        for (text, document) in [
            ("fd42::/56", json!({"IP": "fd42::", "Mask": "/////////wAAAAAAAAAAAA=="})),
            ("10.42.128.0/17", json!({"IP": "10.42.128.0", "Mask": "//+AAA=="})),
        ] {
            let net: IpNet = text.parse().unwrap();
            let told = IpNetDocument::from(&net);
            assert_eq!(serde_json::to_value(&told).unwrap(), document);
            assert_eq!(IpNet::try_from(&told), Ok(net));
        }
    }

    #[test]
    fn what_is_no_mask_is_told() {
        for mask in ["//8=", "?", "gA8AAA=="] {
            let told = serde_json::from_value(json!({"IP": "10.42.0.0", "Mask": mask})).unwrap();
            let problem = format!("10.42.0.0/{mask} is not an address range");
            assert_eq!(IpNet::try_from(&told).unwrap_err().to_string(), problem);
        }
    }
}
