//! The host's own settings, as k3s makes them before its components start: kernel modules, sysctls, and the choice of a packet filter.

mod forward;
mod modules;
mod obstacles;
mod packet_filter;
mod sysctl;

use ipnet::IpNet;
use tracing::{debug, info, warn};

pub use self::{
    obstacles::obstacles,
    packet_filter::{NftablesUnusable, ProxyMode, nftables_usable},
    sysctl::Conntrack,
};

/// What the host is prepared for.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// Pod ranges of the cluster, one per family: they say which families forward.
    pub cluster_cidrs: Vec<IpNet>,
    /// Whether bridged traffic meets the packet filter: only where kube-proxy or our overlay runs, as other CNI plugins manage it themselves.
    pub filter_bridges: bool,
    /// Connection tracking's limits.
    pub conntrack: Conntrack,
}

/// What was found and could be done. Nothing in it is fatal: a node with a warning still starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// What Services and NAT are made with.
    pub proxy_mode: ProxyMode,
    /// What the administrator should know, for `k3s status`.
    pub warnings: Vec<Warning>,
    /// The same of what may pass while the node runs: see [`obstacles`].
    pub obstacles: Vec<Warning>,
}

/// Something about the host that will hurt, and how to cure it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// A stable name for it, such as `forward-policy`.
    pub key: &'static str,
    /// One sentence: what is wrong, what follows, what to do.
    pub sentence: String,
}

/// Prepares the host, in the network namespace of the calling thread, and logs each warning once.
pub async fn prepare(plan: &HostPlan) -> HostReport {
    let ipv6 = plan.cluster_cidrs.iter().any(|cidr| cidr.addr().is_ipv6());
    modules::load(ipv6).await;
    let mut warnings = sysctl::apply(sysctl::PROC_SYS.as_ref(), plan, ipv6);
    let proxy_mode = match nftables_usable().await {
        Ok(()) => ProxyMode::Nftables,
        Err(reason) => {
            info!(%reason, "Services and NAT use iptables, as nftables cannot be used here.");
            if let Err(error) = packet_filter::iptables_usable().await {
                debug!(%error, "iptables cannot be used either.");
                warnings.push(Warning {
                    key: "packet-filter",
                    sentence: format!(
                        "Neither nftables ({reason}) nor iptables ({error}) can be used, so Services and pods' way out do not work: \
                         install nftables, and a kernel that has it."
                    ),
                });
            }
            ProxyMode::Iptables
        }
    };
    let obstacles = obstacles(proxy_mode, &plan.cluster_cidrs).await;
    for Warning { key, sentence } in warnings.iter().chain(&obstacles) {
        warn!(key, "{sentence}");
    }
    HostReport { proxy_mode, warnings, obstacles }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    fn plan(cidrs: &[&str]) -> HostPlan {
        HostPlan {
            cluster_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            filter_bridges: true,
            conntrack: Conntrack::default(),
        }
    }

    #[test]
    fn a_namespace_forwards_after_preparing() {
        in_namespace(async || {
            prepare(&plan(&["10.42.0.0/16"])).await;
            assert_eq!(sh("cat /proc/sys/net/ipv4/conf/all/forwarding").await, "1\n");
            assert_eq!(sh("cat /proc/sys/net/ipv4/conf/default/forwarding").await, "1\n");
        });
    }

    #[test]
    fn a_dropping_forward_chain_is_named_until_it_lets_pods_through() {
        in_namespace(async || {
            let plan = plan(&["10.42.0.0/16"]);
            if prepare(&plan).await.proxy_mode == ProxyMode::Iptables {
                println!("skipped: nftables cannot be used here");
                return;
            }
            let forward = async || {
                let obstacles = prepare(&plan).await.obstacles;
                obstacles.into_iter().find(|warning| warning.key == "forward-policy")
            };
            assert_eq!(forward().await, None);
            sh("nft add table ip filter
                nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'")
            .await;
            let sentence = forward().await.unwrap().sentence;
            assert!(sentence.contains("`ip filter FORWARD`"), "{sentence}");
            assert!(sentence.contains("iptables -I FORWARD -s 10.42.0.0/16 -j ACCEPT"), "{sentence}");
            sh("nft insert rule ip filter FORWARD ip saddr 10.42.0.0/16 accept").await;
            assert_eq!(forward().await, None);
        });
    }
}
