//! Kernel modules that the components use but cannot load themselves.

use std::path::Path;

use tracing::debug;

use crate::command;

const MODULES: &[&str] = &[
    "overlay",
    "nf_conntrack",
    "br_netfilter",
    "vxlan",
    "iptable_nat",
    "iptable_filter",
    "nft-expr-counter",
    "nfnetlink-subsys-11",
    "nft-chain-2-nat",
];
const MODULES_IPV6: &[&str] = &["ip6table_nat", "ip6table_filter"];

/// Loads what is neither there nor built in. That some are missing is normal (a kernel without modules, or without iptables):
/// whoever needs one says so itself.
pub(super) async fn load(ipv6: bool) {
    let wanted = MODULES.iter().chain(if ipv6 { MODULES_IPV6 } else { &[] });
    let missing: Vec<&str> = wanted.copied().filter(|name| !Path::new("/sys/module").join(name).exists()).collect();
    if missing.is_empty() {
        return;
    }
    let args: Vec<&str> = ["-q", "-a", "--"].into_iter().chain(missing).collect();
    if let Err(error) = command::run("modprobe", &args, "").await {
        debug!(%error, "Not every kernel module was loaded.");
    }
}
