//! Which of the kernel's packet filters can be used.

use std::fs;

use crate::command::{self, CommandError};

/// kube-proxy's back ends, which our own rules follow so that one node uses one packet filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// By default. Does not serve NodePorts on loopback addresses.
    Nftables,
    /// Where nftables cannot be used.
    Iptables,
}

impl ProxyMode {
    /// As kube-proxy's `--proxy-mode` takes it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// Why kube-proxy could not work with nftables here.
#[derive(Debug, thiserror::Error)]
pub enum NftablesUnusable {
    /// kube-proxy's nftables mode refuses older kernels.
    #[error("Linux {found} is older than {}.{}", KERNEL.0, KERNEL.1)]
    Kernel {
        /// The running kernel.
        found: String,
    },
    /// It refuses older programs too.
    #[error("{found} is older than v{}.{}.{}", NFT.0, NFT.1, NFT.2)]
    Program {
        /// What `nft --version` said.
        found: String,
    },
    /// No program, or a kernel that lacks what kube-proxy needs.
    #[error(transparent)]
    Refused(#[from] CommandError),
}

const KERNEL: (u32, u32, u32) = (5, 13, 0);
const NFT: (u32, u32, u32) = (1, 0, 1);

/// The kinds of rules that kube-proxy and we make, checked by the kernel but never put in place.
const PROBE: &str = "
table inet k3s-probe {
    map verdicts { type inet_proto . ipv4_addr . inet_service : verdict; }
    chain services {
        type nat hook prerouting priority dstnat;
        fib daddr type local ip daddr . meta l4proto . th dport { 127.0.0.1 . tcp . 1 } return
        meta l4proto . ip daddr . th dport vmap @verdicts
        numgen random mod 2 vmap { 0 : accept, 1 : return }
        meta mark set mark or 0x4000
        meta l4proto tcp dnat ip to 10.0.0.1:1
    }
    chain egress {
        type nat hook postrouting priority srcnat;
        ct state new masquerade fully-random
    }
}
";

/// Whether kube-proxy and our own rules can use nftables, found out by asking the kernel.
///
/// # Errors
/// Why they cannot: the kernel or the program is missing or too old, or refuses what is asked for.
pub async fn nftables_usable() -> Result<(), NftablesUnusable> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&kernel).is_some_and(|version| version < KERNEL) {
        return Err(NftablesUnusable::Kernel { found: kernel.trim().into() });
    }
    let found = command::run("nft", &["--version"], "").await?;
    if found.split_once('v').and_then(|(_, text)| version(text)).is_some_and(|version| version < NFT) {
        return Err(NftablesUnusable::Program { found: found.trim().into() });
    }
    command::run("nft", &["--check", "--file", "-"], PROBE).await?;
    Ok(())
}

/// Whether there is an `iptables` that the kernel answers.
pub(super) async fn iptables_usable() -> Result<(), CommandError> {
    command::run("iptables", &["-w", "-t", "nat", "-S"], "").await.map(drop)
}

/// The numbers at the start of a version such as `6.1.0-18-amd64`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.1.0-18-amd64\n"), Some((6, 1, 0)));
        assert_eq!(version("5.15-rc1"), Some((5, 15, 0)));
        assert!(version("5.4.0").unwrap() < KERNEL);
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn probing_leaves_nothing_behind() {
        in_namespace(async || match nftables_usable().await {
            Ok(()) => assert_eq!(sh("nft list ruleset").await, ""),
            Err(NftablesUnusable::Refused(error)) if error.to_string().contains("syntax error") => panic!("{error}"),
            Err(reason) => println!("skipped: {reason}"),
        });
    }
}
