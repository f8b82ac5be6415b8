//! What a server tells of the cluster at `/v1-k3s/config`, in the words of k3s' Go structure.

use ipnet::IpNet;
use k3s_config::{
    network::{ClusterNetwork, PortRange},
    server::EgressMode,
};
use k3s_supervisor_api::{ClusterDocument, IpNetDocument, NotARange, PortRangeDocument};

/// What a node needs to know of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterConfig {
    /// The address plan.
    pub(crate) network: ClusterNetwork,
    /// What servers reach through the node's tunnel.
    pub(crate) egress: EgressMode,
    /// Whether kube-proxy runs.
    pub(crate) kube_proxy: bool,
    /// Whether network policies are enforced.
    pub(crate) network_policy: bool,
    /// Whether the servers' node controller sets nodes' addresses.
    pub(crate) cloud_controller: bool,
    /// Whether Services are served at nodes' addresses.
    pub(crate) service_lb: bool,
    /// The registry of packaged images.
    pub(crate) system_default_registry: Option<String>,
    /// Where the node shows what it counts, if anywhere.
    pub(crate) metrics: Option<MetricsConfig>,
}

/// How the cluster wants its nodes to show what they count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetricsConfig {
    /// Where: the servers' own port.
    pub(crate) port: u16,
    /// The least version of TLS, by Go's name; empty for 1.2.
    pub(crate) min_tls_version: String,
    /// The suites of TLS 1.2, by Go's names; empty for all.
    pub(crate) cipher_suites: Vec<String>,
}

/// Why an answer is no configuration that this node can follow.
#[derive(Debug, thiserror::Error)]
pub enum UnusableConfig {
    /// Not what k3s' servers answer.
    #[error("it is not understood ({0})")]
    Malformed(#[from] serde_json::Error),
    /// An address range that is none.
    #[error(transparent)]
    Range(#[from] NotARange),
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
        // Whole, so that none of it is told and read by nobody.
        let ClusterDocument {
            cluster_ip_range,
            cluster_ip_ranges,
            service_ip_range,
            service_ip_ranges,
            service_node_port_range,
            cluster_dns,
            cluster_dnss,
            cluster_domain,
            flannel_backend,
            flannel_ipv6_masq,
            flannel_external_ip,
            egress_selector_mode,
            disable_kube_proxy,
            disable_npc,
            disable_ccm,
            disable_service_lb,
            system_default_registry,
            supervisor_metrics,
            min_tls_version,
            cipher_suites,
            supervisor_port,
            https_port,
        } = serde_json::from_slice(json)?;
        if supervisor_port != https_port {
            return Err(UnusableConfig::Ports { supervisor: supervisor_port, api: https_port });
        }
        Ok(Self {
            network: ClusterNetwork {
                cluster_cidrs: ranges(cluster_ip_ranges, cluster_ip_range, "ClusterIPRange")?,
                service_cidrs: ranges(service_ip_ranges, service_ip_range, "ServiceIPRange")?,
                node_ports: ports(service_node_port_range),
                cluster_dns: match (cluster_dnss, cluster_dns) {
                    (Some(all), _) if !all.is_empty() => all,
                    (_, Some(one)) => vec![one],
                    _ => return Err(UnusableConfig::Missing("ClusterDNS")),
                },
                cluster_domain,
                overlay: flannel_backend.parse().map_err(UnusableConfig::Backend)?,
                masquerade_ipv6: flannel_ipv6_masq,
                overlay_external: flannel_external_ip,
            },
            egress: match egress_selector_mode {
                Some(mode) if !mode.is_empty() => mode.parse().map_err(UnusableConfig::Egress)?,
                _ => EgressMode::Agent,
            },
            kube_proxy: !disable_kube_proxy,
            network_policy: !disable_npc,
            cloud_controller: !disable_ccm,
            service_lb: !disable_service_lb,
            system_default_registry: system_default_registry.filter(|registry| !registry.is_empty()),
            metrics: supervisor_metrics.then(|| MetricsConfig {
                port: supervisor_port,
                min_tls_version,
                cipher_suites: cipher_suites.unwrap_or_default(),
            }),
        })
    }
}

fn ports(PortRangeDocument { base, size }: PortRangeDocument) -> PortRange {
    let last = u32::from(base).saturating_add(size.saturating_sub(1));
    PortRange { first: base, last: u16::try_from(last).unwrap_or(u16::MAX) }
}

fn ranges(
    all: Option<Vec<IpNetDocument>>,
    one: Option<IpNetDocument>,
    field: &'static str,
) -> Result<Vec<IpNet>, UnusableConfig> {
    let ranges: Vec<IpNetDocument> = all.filter(|all| !all.is_empty()).unwrap_or_else(|| one.into_iter().collect());
    if ranges.is_empty() {
        return Err(UnusableConfig::Missing(field));
    }
    ranges.iter().map(|range| Ok(IpNet::try_from(range)?)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

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
        let plain = MetricsConfig { port: 6443, min_tls_version: String::new(), cipher_suites: Vec::new() };
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
