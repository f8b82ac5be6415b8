//! Taking away what a node's network leaves on its host: the bridge and the overlay with its routes, and the rules of this process, of
//! kube-proxy, of kubelet and of the CNI plugins, in either packet filter.

use std::path::Path;

use ipnet::IpNet;

use crate::{
    BRIDGE, Family, NatError, NetlinkError, PodNat, SubnetEnv, Underlay,
    command::{self, CommandError},
    nat::installed,
    netlink::remove_device,
    overlay::{self, OverlayError},
};

/// Tables of nftables that are wholly a node's: network policy's, the load balancer's, kube-proxy's, and those of the CNI plugin `portmap`.
const TABLES: [&str; 6] = [
    "inet k3s-network-policy",
    "inet k3s-service-lb",
    "ip kube-proxy",
    "ip6 kube-proxy",
    "ip cni_hostport",
    "ip6 cni_hostport",
];
/// How the names of chains in iptables begin that kube-proxy, kubelet and `portmap` make, with the space or colon before them.
const CHAINS: [&str; 4] = [" KUBE-", ":KUBE-", " CNI-", ":CNI-"];
/// What saves and restores the rules of a family.
const IPTABLES: [(&str, &str); 2] = [("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore")];
/// kube-proxy's device in mode ipvs.
const IPVS: &str = "kube-ipvs0";

/// Something of a node's network that could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// A device or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// Our rules for what pods send out.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Others' rules.
    #[error("rules of the node's programs could not be removed")]
    Rules(#[from] CommandError),
}

/// Takes away all that it finds; what could not be is returned. `subnet_env` tells the ranges of pods whose routes go.
pub async fn remove_leftovers(subnet_env: &Path) -> Vec<LeftoverError> {
    let mut failed = Vec::new();
    let mut note = |result: Result<(), LeftoverError>| failed.extend(result.err());
    note(remove_overlay(&SubnetEnv::clusters(subnet_env)).await);
    for device in [BRIDGE, IPVS] {
        note(remove_device(device).await.map_err(Into::into));
    }
    note(PodNat::remove().await.map_err(Into::into));
    note(remove_tables().await.map_err(Into::into));
    for (save, restore) in IPTABLES {
        note(remove_chains(save, restore).await.map_err(Into::into));
    }
    failed
}

async fn remove_overlay(clusters: &[IpNet]) -> Result<(), LeftoverError> {
    let mut underlays = Vec::new();
    for cluster in clusters {
        // Where there is no default route, there are no routes by it.
        underlays.extend(Underlay::of_default_route(Family::of(cluster.addr())).await.ok());
    }
    Ok(overlay::remove(clusters, &underlays).await?)
}

async fn remove_tables() -> Result<(), CommandError> {
    // Naming a table first makes its removal succeed where it never was.
    let text: String = TABLES.iter().map(|table| format!("table {table}\ndelete table {table}\n")).collect();
    installed(command::run("nft", &["--file", "-"], &text).await).map(drop)
}

async fn remove_chains(save: &'static str, restore: &'static str) -> Result<(), CommandError> {
    let Some(rules) = installed(command::run(save, &[], "").await)? else { return Ok(()) };
    match without_chains(&rules) {
        Some(others) => command::run(restore, &["--wait"], &others).await.map(drop),
        None => Ok(()),
    }
}

/// The rules of everybody else, where there are some of a node's programs.
fn without_chains(rules: &str) -> Option<String> {
    // A comment may hold anything, but a chain's name stands outside of quotes.
    let is_ours = |line: &&str| {
        let unquoted: String = line.split('"').step_by(2).collect();
        CHAINS.iter().any(|chain| unquoted.starts_with(chain) || (chain.starts_with(' ') && unquoted.contains(chain)))
    };
    rules.lines().any(|line| is_ours(&line)).then(|| {
        let others = rules.lines().filter(|line| !is_ours(line));
        others.flat_map(|line| [line, "\n"]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    #[test]
    fn rules_of_others_stay() {
        let rules = "\
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m comment --comment \"not a KUBE- rule\" -j MINE
-A KUBE-SERVICES -j RETURN
COMMIT
";
        let others = "\
*nat
:PREROUTING ACCEPT [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment \"not a KUBE- rule\" -j MINE
COMMIT
";
        assert_eq!(without_chains(rules).as_deref(), Some(others));
        assert_eq!(without_chains(others), None);
    }

    #[test]
    fn devices_routes_and_tables_go_and_others_stay() {
        in_namespace(async || {
            let dir = tempfile::tempdir().unwrap();
            let env = dir.path().join("subnet.env");
            std::fs::write(&env, "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_MTU=1500\n")
                .unwrap();
            sh("ip link set lo up; ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
                ip address add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.254
                ip link add name cni0 type bridge; ip link add name mine type bridge
                ip route add 10.42.1.0/24 via 192.0.2.2
                nft 'table inet k3s { }; table ip kube-proxy { }; table inet k3s-network-policy { }; table inet k3s-service-lb { }; table inet mine { }'")
                .await;
            for _ in 0..2 {
                let failed = remove_leftovers(&env).await;
                assert!(failed.is_empty(), "{failed:?}");
            }
            assert_eq!(
                sh("nft list tables | grep -v -e filter -e nat -e mangle -e raw || true").await,
                "table inet mine\n"
            );
            assert_eq!(sh("ip -o link | grep -c -e cni0 -e mine").await, "1\n");
            assert_eq!(sh("ip route | grep -c 10.42 || true").await, "0\n");
        });
    }
}
