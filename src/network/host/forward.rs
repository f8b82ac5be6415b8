//! Firewalls that drop what pods send through the host.

use ipnet::IpNet;
use serde::Deserialize;

use super::{ProxyMode, Warning};
use crate::command;

/// Names a forward chain whose policy is to drop, unless its table already speaks of the pods' ranges: the administrator knows then.
/// A firewall that cannot be read is none that we can warn about.
pub(super) async fn check(mode: ProxyMode, cluster_cidrs: &[IpNet]) -> Option<Warning> {
    match mode {
        ProxyMode::Nftables => {
            let chains = command::run("nft", &["--json", "list", "chains"], "").await.ok()?;
            for chain in dropping_chains(&chains) {
                let Some(cidr) = cluster_cidrs.iter().find(|cidr| chain.sees(cidr)) else { continue };
                let list = ["--numeric", "list", "table", &chain.family, &chain.table];
                let rules = command::run("nft", &list, "").await.unwrap_or_default();
                if !rules.contains(&cidr.to_string()) {
                    return Some(warning(&chain, *cidr));
                }
            }
            None
        }
        ProxyMode::Iptables => {
            let cidr = cluster_cidrs.iter().find(|cidr| cidr.addr().is_ipv4())?;
            let rules = command::run("iptables", &["-w", "-S"], "").await.ok()?;
            let drops = rules.lines().any(|line| line == "-P FORWARD DROP");
            let chain = Chain { family: "ip".into(), table: "filter".into(), name: "FORWARD".into() };
            (drops && !rules.contains(&cidr.to_string())).then(|| warning(&chain, *cidr))
        }
    }
}

/// A base chain at the forward hook.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
}

impl Chain {
    fn sees(&self, cidr: &IpNet) -> bool {
        match self.family.as_str() {
            "ip" => cidr.addr().is_ipv4(),
            "ip6" => cidr.addr().is_ipv6(),
            family => family == "inet",
        }
    }
}

fn dropping_chains(json: &str) -> Vec<Chain> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        chain: Option<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        family: String,
        table: String,
        name: String,
        hook: Option<String>,
        policy: Option<String>,
    }
    let Ok(listing) = serde_json::from_str::<Listing>(json) else { return Vec::new() };
    let chains = listing.nftables.into_iter().filter_map(|entry| entry.chain);
    let dropping = chains
        .filter(|chain| chain.hook.as_deref() == Some("forward") && chain.policy.as_deref() == Some("drop"))
        .map(|chain| Chain { family: chain.family, table: chain.table, name: chain.name });
    dropping.collect()
}

fn warning(chain: &Chain, cidr: IpNet) -> Warning {
    let Chain { family, table, name } = chain;
    let by_iptables = table == "filter" && name == "FORWARD";
    let remedy = match (by_iptables, family.as_str()) {
        (true, "ip") => {
            format!("`iptables -I FORWARD -s {cidr} -j ACCEPT` and `iptables -I FORWARD -d {cidr} -j ACCEPT`")
        }
        (true, "ip6") => {
            format!("`ip6tables -I FORWARD -s {cidr} -j ACCEPT` and `ip6tables -I FORWARD -d {cidr} -j ACCEPT`")
        }
        _ => {
            let ip = if cidr.addr().is_ipv4() { "ip" } else { "ip6" };
            let insert = format!("nft insert rule {family} {table} {name} {ip}");
            format!("`{insert} saddr {cidr} accept` and `{insert} daddr {cidr} accept`")
        }
    };
    Warning {
        key: "forward-policy",
        sentence: format!(
            "The host's firewall drops forwarded packets (chain `{family} {table} {name}`, policy drop), so pods reach neither each \
             other nor the outside: let them through with {remedy}, and make that permanent in the firewall's own configuration."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dropping_chains_at_the_forward_hook_count() {
        let json = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 3, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "nat", "name": "f", "handle": 3, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}
        ]}"#;
        assert_eq!(
            dropping_chains(json),
            [Chain { family: "ip".into(), table: "filter".into(), name: "FORWARD".into() }]
        );
        assert_eq!(dropping_chains("not json"), []);
    }

    #[test]
    fn the_remedy_is_in_the_firewalls_own_language() {
        let chain = Chain { family: "inet".into(), table: "nixos-fw".into(), name: "forward".into() };
        let sentence = warning(&chain, "10.42.0.0/16".parse().unwrap()).sentence;
        assert!(
            sentence.contains("`nft insert rule inet nixos-fw forward ip saddr 10.42.0.0/16 accept`"),
            "{sentence}"
        );
    }
}
