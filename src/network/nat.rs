//! NAT for what pods send out of the cluster.
//!
//! A pod's address means nothing outside, so packets that leave for elsewhere take the node's. Not for other pods, who see each other
//! as they are, nor for multicast. Packets for the node itself never come to this hook.
//!
//! What comes from elsewhere for pods on other nodes takes this node's address on the way there: the answer would else go straight to
//! where the question came from, past the nodes that know of it. Flannel does the same.

use std::{fmt::Write as _, time::Duration};

use ipnet::IpNet;
use tokio::time::sleep;
use tracing::warn;

use crate::{
    command::{self, CommandError},
    host::ProxyMode,
    table::{TableError, WholeTable},
};

/// Our nftables table, of the family `inet` and wholly ours.
const TABLE: &str = "k3s";
/// How often iptables, which tells of no changes, is asked for our rules: kube-proxy asks for its own twice as often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Our iptables chain, entered from `POSTROUTING`.
const CHAIN: &str = "K3S-POSTROUTING";

/// The rules of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNat {
    /// Pod ranges of this node.
    pub pod_cidrs: Vec<IpNet>,
    /// Pod ranges of the cluster.
    pub cluster_cidrs: Vec<IpNet>,
}

/// The packet filter did not take our rules, or did not give them back.
#[derive(Debug, thiserror::Error)]
#[error("the rules for pods' way out of the cluster could not be {doing}")]
pub struct NatError {
    doing: &'static str,
    /// What the program said.
    source: TableError,
}

/// The rules in the packet filter, of which it is noticed when somebody else takes them away.
pub struct NatRules(Filter);

enum Filter {
    Nftables(WholeTable),
    /// With the rules that are in place.
    Iptables(Option<PodNat>),
}

impl NatRules {
    /// None yet that are known of; those of a former process are replaced by the first ones.
    pub fn new(mode: ProxyMode) -> Self {
        Self(match mode {
            ProxyMode::Nftables => Filter::Nftables(WholeTable::new(TABLE)),
            ProxyMode::Iptables => Filter::Iptables(None),
        })
    }

    /// Puts the rules in the place of any former ones of ours, in one step: there is no moment without. Does nothing if they are there.
    ///
    /// # Errors
    /// The program of the packet filter is missing, or refuses the rules.
    pub async fn set(&mut self, nat: PodNat) -> Result<(), NatError> {
        let set = match &mut self.0 {
            Filter::Nftables(table) => table.set(&nat.nftables()).await,
            Filter::Iptables(Some(applied)) if *applied == nat => Ok(()),
            Filter::Iptables(applied) => nat.apply_iptables().await.map(|()| *applied = Some(nat)).map_err(Into::into),
        };
        set.map_err(|source| NatError { doing: "put in place", source })
    }

    /// Waits until somebody else has taken them away: then they have to be set again. Cancel-safe.
    pub async fn lost(&mut self) {
        match &mut self.0 {
            Filter::Nftables(table) => table.lost().await,
            Filter::Iptables(applied) => {
                loop {
                    sleep(LOOK_AGAIN).await;
                    match applied {
                        Some(nat) if !nat.is_in_iptables().await => break,
                        _ => {}
                    }
                }
                *applied = None;
                warn!("Somebody has removed the rules for pods' way out of the cluster; they are put in place again.");
            }
        }
    }
}

impl PodNat {
    /// Takes away whatever of ours is in either packet filter.
    ///
    /// # Errors
    /// A program of a packet filter fails.
    pub async fn remove() -> Result<(), NatError> {
        let removed = async {
            // Naming the table first makes its removal succeed where it never was.
            let remove = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
            installed(command::run("nft", &["--file", "-"], &remove).await)?;
            for programs in [&IPTABLES, &IP6TABLES] {
                let Some(rules) = installed(command::run(programs.tool, &["-w", "-t", "nat", "-S"], "").await)? else {
                    continue;
                };
                if rules.contains(CHAIN) {
                    command::run(programs.restore, RESTORE, &remove_iptables(&rules)).await?;
                }
            }
            Ok(())
        };
        removed.await.map_err(|source: CommandError| NatError { doing: "removed", source: source.into() })
    }

    async fn apply_iptables(&self) -> Result<(), CommandError> {
        for programs in [&IPTABLES, &IP6TABLES] {
            let pod_cidrs = || self.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == programs.is_v4);
            if pod_cidrs().next().is_some() {
                let rules = command::run(programs.tool, &["-w", "-t", "nat", "-S", "POSTROUTING"], "").await?;
                command::run(programs.restore, RESTORE, &self.iptables(programs.is_v4, &rules)).await?;
            }
        }
        Ok(())
    }

    /// Whether the ways into our chains are there: whoever flushes the chain takes them along.
    async fn is_in_iptables(&self) -> bool {
        for programs in [&IPTABLES, &IP6TABLES] {
            let has_any = self.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == programs.is_v4);
            let jump = ["-w", "-t", "nat", "-C", "POSTROUTING", "-j", CHAIN];
            if has_any && command::run(programs.tool, &jump, "").await.is_err() {
                return false;
            }
        }
        true
    }

    fn nftables(&self) -> String {
        let mut rules = String::new();
        for pods in &self.pod_cidrs {
            let (ip, multicast) = if pods.addr().is_ipv4() { ("ip", MULTICAST_V4) } else { ("ip6", MULTICAST_V6) };
            let pods_text = pods.trunc();
            let cluster: Vec<_> = self.cluster_cidrs_like(pods).map(|cidr| cidr.trunc().to_string()).collect();
            let cluster = cluster.join(", ");
            let _ = writeln!(
                rules,
                "        {ip} saddr {pods_text} {ip} daddr != {{ {cluster}, {multicast} }} masquerade fully-random\n        \
                 {ip} saddr != {{ {cluster} }} {ip} daddr != {pods_text} {ip} daddr {{ {cluster} }} masquerade fully-random",
            );
        }
        format!(
            "    chain postrouting {{\n        type nat hook postrouting priority srcnat; policy accept;\n{rules}    }}\n"
        )
    }

    /// Input for `iptables-restore --noflush`; `postrouting` is how the built-in chain looks now.
    fn iptables(&self, is_v4: bool, postrouting: &str) -> String {
        // Declaring a chain empties it.
        let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
        for pods in self.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == is_v4) {
            let multicast = if is_v4 { MULTICAST_V4 } else { MULTICAST_V6 };
            let pods_text = pods.trunc();
            for cidr in self.cluster_cidrs_like(pods) {
                let _ = writeln!(text, "-A {CHAIN} -s {pods_text} -d {} -j RETURN", cidr.trunc());
            }
            let _ = writeln!(text, "-A {CHAIN} -s {pods_text} -d {multicast} -j RETURN");
            let _ = writeln!(text, "-A {CHAIN} -s {pods_text} -j MASQUERADE --random-fully");
            let _ = writeln!(text, "-A {CHAIN} -d {pods_text} -j RETURN");
            for cidr in self.cluster_cidrs_like(pods) {
                let _ = writeln!(text, "-A {CHAIN} ! -s {0} -d {0} -j MASQUERADE --random-fully", cidr.trunc());
            }
        }
        if !postrouting.contains(CHAIN) {
            let _ = writeln!(text, "-A POSTROUTING -j {CHAIN}");
        }
        text.push_str("COMMIT\n");
        text
    }

    fn cluster_cidrs_like(&self, pods: &IpNet) -> impl Iterator<Item = &IpNet> {
        let is_v4 = pods.addr().is_ipv4();
        self.cluster_cidrs.iter().filter(move |cidr| cidr.addr().is_ipv4() == is_v4)
    }
}

const MULTICAST_V4: &str = "224.0.0.0/4";
const MULTICAST_V6: &str = "ff00::/8";

struct IptablesPrograms {
    is_v4: bool,
    tool: &'static str,
    restore: &'static str,
}

const IPTABLES: IptablesPrograms = IptablesPrograms { is_v4: true, tool: "iptables", restore: "iptables-restore" };
const IP6TABLES: IptablesPrograms = IptablesPrograms { is_v4: false, tool: "ip6tables", restore: "ip6tables-restore" };
const RESTORE: &[&str] = &["--wait", "--noflush"];

/// Takes back each way into our chain, then the chain; `rules` is how the table looks now.
fn remove_iptables(rules: &str) -> String {
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
    let jump = format!(" -j {CHAIN}");
    for rule in rules.lines().filter(|rule| rule.ends_with(&jump)) {
        if let Some(rule) = rule.strip_prefix("-A ") {
            let _ = writeln!(text, "-D {rule}");
        }
    }
    let _ = write!(text, "-X {CHAIN}\nCOMMIT\n");
    text
}

/// `None` where the program is not there or its kernel side is not: then nothing of ours can be there either.
pub(crate) fn installed(result: Result<String, CommandError>) -> Result<Option<String>, CommandError> {
    match result {
        Ok(output) => Ok(Some(output)),
        Err(CommandError::NotFound { .. }) => Ok(None),
        Err(CommandError::Failed { stderr, .. }) if NO_KERNEL_SIDE.iter().any(|text| stderr.contains(text)) => Ok(None),
        Err(error) => Err(error),
    }
}

const NO_KERNEL_SIDE: &[&str] = &["Protocol not supported", "Table does not exist", "Operation not supported"];

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{
        host::nftables_usable,
        test_namespace::{Namespace, in_namespace, sh},
    };

    fn dual_stack() -> PodNat {
        let cidrs = |cidrs: [&str; 2]| cidrs.map(|cidr| cidr.parse().unwrap()).to_vec();
        PodNat {
            pod_cidrs: cidrs(["10.42.1.0/24", "fd42:0:0:1::/64"]),
            cluster_cidrs: cidrs(["10.42.0.0/16", "fd42::/48"]),
        }
    }

    #[test]
    fn nftables_has_one_chain() {
        assert_eq!(
            dual_stack().nftables(),
            r"    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.42.1.0/24 ip daddr != { 10.42.0.0/16, 224.0.0.0/4 } masquerade fully-random
        ip saddr != { 10.42.0.0/16 } ip daddr != 10.42.1.0/24 ip daddr { 10.42.0.0/16 } masquerade fully-random
        ip6 saddr fd42:0:0:1::/64 ip6 daddr != { fd42::/48, ff00::/8 } masquerade fully-random
        ip6 saddr != { fd42::/48 } ip6 daddr != fd42:0:0:1::/64 ip6 daddr { fd42::/48 } masquerade fully-random
    }
"
        );
    }

    #[test]
    fn iptables_has_one_chain_entered_once() {
        assert_eq!(
            dual_stack().iptables(true, "-P POSTROUTING ACCEPT\n"),
            "\
*nat
:K3S-POSTROUTING - [0:0]
-A K3S-POSTROUTING -s 10.42.1.0/24 -d 10.42.0.0/16 -j RETURN
-A K3S-POSTROUTING -s 10.42.1.0/24 -d 224.0.0.0/4 -j RETURN
-A K3S-POSTROUTING -s 10.42.1.0/24 -j MASQUERADE --random-fully
-A K3S-POSTROUTING -d 10.42.1.0/24 -j RETURN
-A K3S-POSTROUTING ! -s 10.42.0.0/16 -d 10.42.0.0/16 -j MASQUERADE --random-fully
-A POSTROUTING -j K3S-POSTROUTING
COMMIT
"
        );
        let again = dual_stack().iptables(true, "-P POSTROUTING ACCEPT\n-A POSTROUTING -j K3S-POSTROUTING\n");
        assert!(!again.contains("-A POSTROUTING"), "{again}");
    }

    #[test]
    fn nftables_takes_the_rules_and_gives_them_back() {
        in_namespace(async || {
            if let Err(reason) = nftables_usable().await {
                println!("skipped: {reason}");
                return;
            }
            sh("nft add table inet other").await;
            let mut rules = NatRules::new(ProxyMode::Nftables);
            rules.set(dual_stack()).await.unwrap();
            let once = sh("nft list table inet k3s").await;
            assert!(once.contains("ip saddr 10.42.1.0/24 ip daddr != { 10.42.0.0/16, 224.0.0.0/4 }"), "{once}");
            NatRules::new(ProxyMode::Nftables).set(dual_stack()).await.unwrap();
            assert_eq!(sh("nft list table inet k3s").await, once, "applying again changes nothing");
            rules.lost().await;
            for change in ["nft flush ruleset; nft add table inet other", "nft flush chain inet k3s postrouting"] {
                rules.set(dual_stack()).await.unwrap();
                assert_eq!(sh("nft list table inet k3s").await, once);
                sh(change).await;
                rules.lost().await;
            }
            rules.set(dual_stack()).await.unwrap();
            PodNat::remove().await.unwrap();
            PodNat::remove().await.unwrap();
            assert_eq!(sh("nft list tables").await, "table inet other\n", "others' tables stay");
        });
    }

    #[test]
    fn iptables_takes_the_rules_and_gives_them_back() {
        in_namespace(async || {
            if let Err(error) = command::run("ip6tables", &["-w", "-t", "nat", "-S"], "").await {
                println!("skipped: {error}");
                return;
            }
            sh("iptables -w -t nat -A POSTROUTING -s 192.0.2.0/24 -j RETURN").await;
            let before = sh("iptables -w -t nat -S").await;
            let nat = dual_stack();
            nat.apply_iptables().await.unwrap();
            nat.apply_iptables().await.unwrap();
            assert!(nat.is_in_iptables().await);
            sh("ip6tables -w -t nat -F").await;
            assert!(!nat.is_in_iptables().await);
            nat.apply_iptables().await.unwrap();
            for (tool, range) in [("iptables", "10.42.1.0/24"), ("ip6tables", "fd42:0:0:1::/64")] {
                let rules = sh(&format!("{tool} -w -t nat -S")).await;
                assert_eq!(rules.matches("-A POSTROUTING -j K3S-POSTROUTING").count(), 1, "{rules}");
                assert!(rules.contains(&format!("-s {range} -j MASQUERADE --random-fully")), "{rules}");
            }
            PodNat::remove().await.unwrap();
            assert_eq!(sh("iptables -w -t nat -S").await, before);
            PodNat::remove().await.unwrap();
        });
    }

    /// A pod on a node, with another node's pod and a host outside the cluster across one wire.
    #[test]
    fn what_leaves_the_cluster_has_the_nodes_address() {
        in_namespace(async || {
            if let Err(reason) = nftables_usable().await {
                println!("skipped: {reason}");
                return;
            }
            let [pod, outside] = [Namespace::new(), Namespace::new()];
            sh(&format!(
                "ip link add pod type veth peer name eth0 netns {pod}
                 ip link add out type veth peer name eth0 netns {outside}
                 ip address add 10.42.1.1/24 dev pod; ip link set pod up
                 ip address add 192.0.2.1/24 dev out; ip link set out up
                 ip link set lo up; ip address add 198.51.100.1/32 dev lo
                 ip route add 10.42.2.0/24 via 192.0.2.9
                 echo 1 > /proc/sys/net/ipv4/conf/all/forwarding
                 nsenter --net={pod} sh -ec 'ip address add 10.42.1.2/24 dev eth0; ip link set eth0 up
                     ip route add default via 10.42.1.1'
                 nsenter --net={outside} sh -ec 'ip address add 192.0.2.9/24 dev eth0; ip link set eth0 up; ip link set lo up
                     ip address add 10.42.2.2/32 dev lo; ip route add 10.42.1.0/24 via 192.0.2.1'"
            ))
            .await;
            NatRules::new(ProxyMode::Nftables).set(dual_stack()).await.unwrap();
            let receiver = outside.run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
            let sender = pod.run(|| UdpSocket::bind("10.42.1.2:0").unwrap());
            receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            // Bound to an address that the way to pods elsewhere does not have.
            let host = UdpSocket::bind("198.51.100.1:0").unwrap();
            for (sender, to, seen_as) in [
                (&sender, "192.0.2.9:7000", "192.0.2.1"),
                (&sender, "10.42.2.2:7000", "10.42.1.2"),
                (&host, "10.42.2.2:7000", "192.0.2.1"),
            ] {
                sender.send_to(b"hello", to).unwrap();
                let (_, from) = receiver.recv_from(&mut [0; 8]).unwrap();
                assert_eq!(from.ip().to_string(), seen_as, "the source that {to} sees");
            }
        });
    }
}
