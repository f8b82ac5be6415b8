//! What a server tells of the cluster at `/v1-k3s/config`, in the words of k3s' Go structure.

use std::net::{IpAddr, Ipv4Addr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use k3s_config::{
    network::{ClusterNetwork, PortRange},
    server::EgressMode,
};
use serde::Deserialize;

use crate::metrics::Wanted;

/// What a node needs to know of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterConfig {
    /// The address plan.
    pub(crate) network: ClusterNetwork,
    /// What servers reach through the node's tunnel.
    pub(crate) egress: EgressMode,
    /// Whether kube-proxy runs.
    pub(crate) kube_proxy: bool,
    /// Whether the servers' node controller sets nodes' addresses.
    pub(crate) cloud_controller: bool,
    /// Where the node shows what it counts, if anywhere.
    pub(crate) metrics: Option<Wanted>,
}

/// Why an answer is no configuration that this node can follow.
#[derive(Debug, thiserror::Error)]
pub enum UnusableConfig {
    /// Not what k3s' servers answer.
    #[error("it is not understood ({0})")]
    Malformed(#[from] serde_json::Error),
    /// An address range that is none.
    #[error("{0} is not an address range")]
    Range(String),
    /// A field that has to be there.
    #[error("it lacks {0}")]
    Missing(&'static str),
    /// A backend that we do not have.
    #[error("its overlay will not do: {0}")]
    Backend(String),
    /// A mode that we do not have.
    #[error("its egress selector mode is not known: {0}")]
    Egress(String),
    /// Two ports where we expect one.
    #[error(
        "its servers have a port of their own for agents, {supervisor} beside {api}, which this version does not follow"
    )]
    Ports {
        /// For agents.
        supervisor: u16,
        /// For the Kubernetes API.
        api: u16,
    },
}

impl ClusterConfig {
    /// Understands a server's answer.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, UnusableConfig> {
        let control: Control = serde_json::from_slice(json)?;
        if control.supervisor_port != control.https_port {
            return Err(UnusableConfig::Ports { supervisor: control.supervisor_port, api: control.https_port });
        }
        let ports = control.service_node_port_range;
        Ok(Self {
            network: ClusterNetwork {
                cluster_cidrs: ranges(control.cluster_ip_ranges, control.cluster_ip_range, "ClusterIPRange")?,
                service_cidrs: ranges(control.service_ip_ranges, control.service_ip_range, "ServiceIPRange")?,
                node_ports: PortRange {
                    first: ports.base,
                    last: ports.base.saturating_add(ports.size.saturating_sub(1)),
                },
                cluster_dns: match (control.cluster_dnss, control.cluster_dns) {
                    (Some(all), _) if !all.is_empty() => all,
                    (_, Some(one)) => vec![one],
                    _ => return Err(UnusableConfig::Missing("ClusterDNS")),
                },
                cluster_domain: control.cluster_domain,
                overlay: control.flannel_backend.parse().map_err(UnusableConfig::Backend)?,
                masquerade_ipv6: control.flannel_ipv6_masq,
                overlay_external: control.flannel_external_ip,
            },
            egress: match control.egress_selector_mode {
                Some(mode) if !mode.is_empty() => mode.parse().map_err(UnusableConfig::Egress)?,
                _ => EgressMode::Agent,
            },
            kube_proxy: !control.disable_kube_proxy,
            cloud_controller: !control.disable_ccm,
            metrics: control.supervisor_metrics.then(|| Wanted {
                port: control.supervisor_port,
                min_tls_version: control.min_tls_version,
                cipher_suites: control.cipher_suites.unwrap_or_default(),
            }),
        })
    }
}

/// The fields of k3s' `config.Control` that concern a node, under their Go names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Control {
    #[serde(rename = "ClusterIPRange")]
    cluster_ip_range: Option<GoNet>,
    #[serde(rename = "ClusterIPRanges")]
    cluster_ip_ranges: Option<Vec<GoNet>>,
    #[serde(rename = "ServiceIPRange")]
    service_ip_range: Option<GoNet>,
    #[serde(rename = "ServiceIPRanges")]
    service_ip_ranges: Option<Vec<GoNet>>,
    service_node_port_range: GoPortRange,
    #[serde(rename = "ClusterDNS")]
    cluster_dns: Option<IpAddr>,
    #[serde(rename = "ClusterDNSs")]
    cluster_dnss: Option<Vec<IpAddr>>,
    cluster_domain: String,
    flannel_backend: String,
    #[serde(default, rename = "FlannelIPv6Masq")]
    flannel_ipv6_masq: bool,
    #[serde(default, rename = "FlannelExternalIP")]
    flannel_external_ip: bool,
    /// k3s had no choice before it had this field.
    egress_selector_mode: Option<String>,
    #[serde(default)]
    disable_kube_proxy: bool,
    #[serde(default, rename = "DisableCCM")]
    disable_ccm: bool,
    #[serde(default)]
    supervisor_metrics: bool,
    #[serde(default, rename = "MinTLSVersion")]
    min_tls_version: String,
    cipher_suites: Option<Vec<String>>,
    supervisor_port: u16,
    #[serde(rename = "HTTPSPort")]
    https_port: u16,
}

/// Go's `net.IPNet`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GoNet {
    #[serde(rename = "IP")]
    ip: IpAddr,
    mask: String,
}

/// Kubernetes' `net.PortRange`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GoPortRange {
    base: u16,
    size: u16,
}

impl GoNet {
    fn range(&self) -> Result<IpNet, UnusableConfig> {
        let wrong = || UnusableConfig::Range(format!("{}/{}", self.ip, self.mask));
        let mask = STANDARD.decode(&self.mask).map_err(|_| wrong())?;
        let mask = match mask.len() {
            4 => <[u8; 4]>::try_from(mask).map(|octets| IpAddr::V4(Ipv4Addr::from(octets))).map_err(|_| wrong())?,
            16 => <[u8; 16]>::try_from(mask).map(IpAddr::from).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        IpNet::with_netmask(self.ip, mask).map_err(|_| wrong())
    }
}

fn ranges(all: Option<Vec<GoNet>>, one: Option<GoNet>, field: &'static str) -> Result<Vec<IpNet>, UnusableConfig> {
    let ranges: Vec<GoNet> = all.filter(|all| !all.is_empty()).unwrap_or_else(|| one.into_iter().collect());
    if ranges.is_empty() {
        return Err(UnusableConfig::Missing(field));
    }
    ranges.iter().map(GoNet::range).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As a k3s server answers, fields that do not concern nodes left out but for one.
    pub(crate) const CONFIG: &str = r#"{
        "AdvertisePort": 6443, "HTTPSPort": 6443, "SupervisorPort": 6443,
        "ClusterDNS": "10.43.0.10", "ClusterDNSs": ["10.43.0.10"], "ClusterDomain": "cluster.local",
        "ClusterIPRange": {"IP": "10.42.0.0", "Mask": "//8AAA=="}, "ClusterIPRanges": [{"IP": "10.42.0.0", "Mask": "//8AAA=="}],
        "ServiceIPRange": {"IP": "10.43.0.0", "Mask": "//8AAA=="}, "ServiceIPRanges": null,
        "ServiceNodePortRange": {"Base": 30000, "Size": 2768},
        "FlannelBackend": "vxlan", "EgressSelectorMode": "agent", "DisableKubeProxy": false, "DisableCCM": true
    }"#;

    #[test]
    fn a_servers_answer_is_understood() {
        let config = ClusterConfig::parse(CONFIG.as_bytes()).unwrap();
        assert_eq!(config.network.cluster_cidrs, ["10.42.0.0/16".parse().unwrap()]);
        assert_eq!(config.network.service_cidrs, ["10.43.0.0/16".parse().unwrap()]);
        assert_eq!(config.network.node_ports, PortRange { first: 30000, last: 32767 });
        assert_eq!(config.network.cluster_dns, ["10.43.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!((config.egress, config.kube_proxy, config.cloud_controller), (EgressMode::Agent, true, false));
        assert_eq!(config.metrics, None);
    }

    #[test]
    fn metrics_are_shown_on_the_servers_port_under_their_tls_policy_where_they_are_wanted() {
        let shown = |more: &str| {
            let answer = CONFIG.replacen('{', &format!("{{\"SupervisorMetrics\": true, {more}"), 1);
            ClusterConfig::parse(answer.as_bytes()).unwrap().metrics.unwrap()
        };
        let plain = Wanted { port: 6443, min_tls_version: String::new(), cipher_suites: Vec::new() };
        assert_eq!(shown(""), plain);
        assert_eq!(shown("\"CipherSuites\": null, "), plain);
        let strict = shown("\"MinTLSVersion\": \"VersionTLS13\", \"CipherSuites\": [\"TLS_A\"], ");
        assert_eq!((strict.min_tls_version.as_str(), strict.cipher_suites), ("VersionTLS13", vec!["TLS_A".to_owned()]));
    }

    #[test]
    fn what_cannot_be_followed_is_told() {
        for (from, to, problem) in [
            ("vxlan", "tailscale", "its overlay will not do: `tailscale` is not a backend"),
            ("\"SupervisorPort\": 6443", "\"SupervisorPort\": 9345", "9345 beside 6443"),
            ("//8AAA==", "//8=", "10.42.0.0///8= is not an address range"),
            ("ClusterIPRange", "Other", "it lacks ClusterIPRange"),
            ("\"ClusterDomain\"", "\"Domain\"", "missing field `ClusterDomain`"),
        ] {
            let error = ClusterConfig::parse(CONFIG.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
