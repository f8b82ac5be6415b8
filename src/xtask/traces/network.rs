//! Interfaces, and rules of packet filters.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Before, Trace};

/// The bridge of pods.
const BRIDGE: &str = "cni0";
/// Where the kernel shows interfaces.
const INTERFACES: &str = "/sys/class/net";
/// Overlay devices, for each address family.
const OVERLAYS: [&str; 2] = ["flannel.1", "flannel-v6.1"];
/// nftables tables that nobody but `k3s`, kube-proxy and the CNI plugin `portmap` has, in any family.
const TABLES: [&str; 3] = ["k3s", "kube-proxy", "cni_hostport"];
/// The tables that iptables makes in nftables when a program looks at them.
const TABLES_OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// What the names of chains begin with that `k3s`, kubelet, kube-proxy and CNI plugins make.
const CHAINS: [&str; 3] = ["K3S-", "KUBE-", "CNI-"];
const IPTABLES: [&str; 2] = ["iptables", "ip6tables"];

/// Pods' ends that are still on the bridge, the bridge, and overlay devices.
pub(super) fn interfaces(_: &Before) -> Result<Vec<Trace>> {
    let interfaces = Path::new(INTERFACES);
    let ports = fs::read_dir(interfaces.join(BRIDGE).join("brif")).into_iter().flatten().flatten();
    let mut names: Vec<String> = ports.map(|port| port.file_name().to_string_lossy().into_owned()).collect();
    names.extend([BRIDGE].into_iter().chain(OVERLAYS).map(str::to_owned));
    names.retain(|name| interfaces.join(name).exists());
    Ok(names.into_iter().map(Trace::Interface).collect())
}

/// A trace for each iptables program that shows chains of ours.
pub(super) fn chains(_: &Before) -> Result<Vec<Trace>> {
    let mut found = Vec::new();
    for program in IPTABLES {
        if saved(program)?.is_some_and(|rules| rules.lines().any(names_a_chain_of_ours)) {
            found.push(Trace::Chains(program));
        }
    }
    Ok(found)
}

/// Puts the rules back without those that name chains of ours.
pub(super) fn remove_chains(program: &'static str) -> Result<()> {
    let Some(rules) = saved(program)? else { return Ok(()) };
    let restore = format!("{program}-restore");
    let mut child = Command::new(&restore)
        .arg("--wait")
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot run {restore}"))?;
    let mut input = child.stdin.take().expect("its input is piped");
    input.write_all(without_chains_of_ours(&rules).as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "{restore} failed");
    Ok(())
}

/// nftables tables of ours, and those that iptables made for us and that have no rules.
pub(super) fn tables(before: &Before) -> Result<Vec<Trace>> {
    let mut found = Vec::new();
    for table in tables_present()? {
        let Some((family, name)) = table.split_once(' ') else { continue };
        let is_iptables = matches!(family, "ip" | "ip6") && TABLES_OF_IPTABLES.contains(&name);
        let is_ours = TABLES.contains(&name)
            || (is_iptables && !before.tables.contains(&table) && is_bare(&nft(&["list", "table", family, name])?));
        if is_ours {
            found.push(Trace::Table(table));
        }
    }
    Ok(found)
}

/// All nftables tables, by family and name; none where there is no nftables.
pub(super) fn tables_present() -> Result<BTreeSet<String>> {
    let listing = nft(&["list", "tables"])?;
    Ok(listing.lines().filter_map(|line| line.strip_prefix("table ")).map(str::to_owned).collect())
}

fn nft(arguments: &[&str]) -> Result<String> {
    match Command::new("nft").args(arguments).stderr(Stdio::null()).output() {
        // A table may go while it is looked at; a kernel without nftables has none.
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context("Cannot run nft"),
    }
}

/// All rules as a program of iptables saves them; `None` where there is no such program.
fn saved(program: &str) -> Result<Option<String>> {
    let mut save = Command::new(format!("{program}-save"));
    match save.stdin(Stdio::null()).stderr(Stdio::null()).output() {
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("Cannot run {program}-save")),
    }
}

fn names_a_chain_of_ours(line: &str) -> bool {
    line.split([' ', ':']).any(|word| CHAINS.iter().any(|prefix| word.starts_with(prefix)))
}

fn without_chains_of_ours(rules: &str) -> String {
    let others = rules.lines().filter(|line| !names_a_chain_of_ours(line));
    others.flat_map(|line| [line, "\n"]).collect()
}

/// Whether a table, as `nft` lists it, has no more than the chains that iptables makes in each.
fn is_bare(listing: &str) -> bool {
    !listing.is_empty()
        && listing.lines().map(str::trim).all(|line| {
            let is_frame = ["table ", "chain ", "type ", "#"].iter().any(|start| line.starts_with(start));
            (is_frame && !line.contains("policy drop")) || matches!(line, "" | "}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_rules_stay_as_they_are() {
        let rules = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:DOCKER - [0:0]\n\
                     -A PREROUTING -m comment --comment \"x\" -j KUBE-SERVICES\n-A PREROUTING -j DOCKER\nCOMMIT\n";
        let left = "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n";
        assert_eq!(without_chains_of_ours(rules), left);
        assert!(!left.lines().any(names_a_chain_of_ours));
    }

    #[test]
    fn a_table_with_a_rule_or_a_closed_policy_is_in_use() {
        let chain = |policy: &str, rule: &str| {
            format!(
                "table ip filter {{\n\tchain INPUT {{\n\t\ttype filter hook input priority filter; policy {policy};\n{rule}\t}}\n}}\n"
            )
        };
        assert!(is_bare(&chain("accept", "")));
        assert!(!is_bare(&chain("drop", "")));
        assert!(!is_bare(&chain("accept", "\t\tip saddr 10.0.0.1 drop\n")));
        assert!(!is_bare(""), "nothing is known of a table that could not be listed");
    }
}
