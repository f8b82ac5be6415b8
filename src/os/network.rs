//! `network` of a first-boot file: what is said of an interface becomes a file of systemd-networkd (systemd.network(5)).

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Deserialize;

/// An interface as the file says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    #[serde(rename = "match")]
    matches: EntryMatch,
    dhcp: Option<bool>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    gateways: Vec<String>,
    #[serde(default)]
    dns: Vec<String>,
    #[serde(default)]
    ntp: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryMatch {
    mac: Option<String>,
    name: Option<String>,
}

/// An interface that can be set up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    matches: Match,
    dhcp: bool,
    addresses: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    dns: Vec<IpAddr>,
    ntp: Vec<String>,
}

/// How it is told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// Six bytes.
    Mac([u8; 6]),
    /// May hold `*` and `?`.
    Name(String),
}

impl TryFrom<&Entry> for Interface {
    type Error = String;

    fn try_from(entry: &Entry) -> Result<Self, String> {
        let matches = match (&entry.matches.mac, &entry.matches.name) {
            (Some(mac), None) => Match::Mac(
                parse_mac(mac).ok_or_else(|| format!("`{mac}` is no MAC address; write it as 52:54:00:12:01:01"))?,
            ),
            (None, Some(name)) if is_name(name) => Match::Name(name.clone()),
            (None, Some(name)) => {
                return Err(format!("`{name}` is no name of an interface; write one like eth0 or en*"));
            }
            _ => return Err("an interface is matched by one of mac and name; write `match: {name: eth0}`".to_owned()),
        };
        let addresses = entry
            .addresses
            .iter()
            .map(|text| {
                text.parse::<IpNet>()
                    .map_err(|_| format!("`{text}` is no address with its prefix; write it as 10.0.0.7/24"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let gateways = ips(&entry.gateways)?;
        let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if let Some(gateway) =
            gateways.iter().find(|ip| !is_link_local(ip) && !addresses.iter().any(|net| net.contains(*ip)))
        {
            return Err(format!(
                "the gateway {gateway} is in the network of none of this interface's addresses; correct it or the prefix"
            ));
        }
        let dhcp = entry.dhcp.unwrap_or(addresses.is_empty());
        if !dhcp && addresses.is_empty() {
            return Err("this interface gets no address; write addresses, or leave dhcp out".to_owned());
        }
        if let Some(name) = entry.ntp.iter().find(|name| !is_host(name)) {
            return Err(format!("`{name}` under ntp is no host; write names or addresses"));
        }
        Ok(Self { matches, dhcp, addresses, gateways, dns: ips(&entry.dns)?, ntp: entry.ntp.clone() })
    }
}

impl Interface {
    pub(crate) fn matches(&self) -> &Match {
        &self.matches
    }

    /// Its `.network` file.
    pub(crate) fn network_file(&self) -> String {
        let mut text = format!(
            "[Match]\n{}\n# Not a bridge or the like with the same address.\nKind=!*\n\n[Network]\n",
            self.matches
        );
        let mut line = |key: &str, value: &dyn fmt::Display| {
            writeln!(text, "{key}={value}").expect("a String takes everything");
        };
        line("DHCP", &if self.dhcp { "yes" } else { "no" });
        self.addresses.iter().for_each(|address| line("Address", address));
        self.gateways.iter().for_each(|gateway| line("Gateway", gateway));
        self.dns.iter().for_each(|server| line("DNS", server));
        self.ntp.iter().for_each(|server| line("NTP", server));
        text
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac([a, b, c, d, e, g]) => write!(f, "MACAddress={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Self::Name(name) => write!(f, "Name={name}"),
        }
    }
}

fn ips(texts: &[String]) -> Result<Vec<IpAddr>, String> {
    let ip = |text: &String| text.parse().map_err(|_| format!("`{text}` is no IP address; write it as 10.0.0.1"));
    texts.iter().map(ip).collect()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<_> = text
        .split([':', '-'])
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok()).flatten())
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// Linux takes 15 bytes; blanks would be a second name to networkd.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*?".contains(&byte);
    !name.is_empty() && name.len() <= 15 && name.bytes().all(is_plain)
}

fn is_host(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
    !name.is_empty() && name.len() <= 253 && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(yaml: &str) -> Result<Interface, String> {
        Interface::try_from(&serde_saphyr::from_str::<Entry>(yaml).expect(yaml))
    }

    #[test]
    fn an_interface_is_a_file_of_networkd() {
        let fixed = interface(
            "match: {mac: \"52:54:00:12:01:0A\"}\naddresses: [192.168.1.7/24, \"fd00::7/64\"]\n\
             gateways: [192.168.1.254, \"fe80::1\"]\ndns: [192.168.1.1]\nntp: [time.site.example]",
        );
        assert_eq!(
            fixed.expect("a right one").network_file(),
            "[Match]\nMACAddress=52:54:00:12:01:0a\n# Not a bridge or the like with the same address.\nKind=!*\n\n\
             [Network]\nDHCP=no\nAddress=192.168.1.7/24\nAddress=fd00::7/64\nGateway=192.168.1.254\nGateway=fe80::1\n\
             DNS=192.168.1.1\nNTP=time.site.example\n"
        );
        let leased = interface("match: {name: en*}").expect("a right one").network_file();
        assert!(leased.contains("Name=en*\n") && leased.contains("DHCP=yes\n"), "{leased}");
    }

    #[test]
    fn what_would_leave_it_without_a_way_is_refused() {
        for (yaml, expected) in [
            ("match: {}", "an interface is matched by one of mac and name; write `match: {name: eth0}`"),
            (
                "match: {mac: \"52:54:00:12:01:01\", name: eth0}",
                "an interface is matched by one of mac and name; write `match: {name: eth0}`",
            ),
            ("match: {mac: 52:54}", "`52:54` is no MAC address; write it as 52:54:00:12:01:01"),
            ("match: {name: \"eth0 eth1\"}", "`eth0 eth1` is no name of an interface; write one like eth0 or en*"),
            (
                "{match: {name: eth0}, addresses: [10.0.0.7]}",
                "`10.0.0.7` is no address with its prefix; write it as 10.0.0.7/24",
            ),
            (
                "{match: {name: eth0}, dhcp: false}",
                "this interface gets no address; write addresses, or leave dhcp out",
            ),
            (
                "{match: {name: eth0}, addresses: [10.0.0.7/24], gateways: [10.0.1.1]}",
                "the gateway 10.0.1.1 is in the network of none of this interface's addresses; correct it or the prefix",
            ),
            ("{match: {name: eth0}, dns: [ns.site]}", "`ns.site` is no IP address; write it as 10.0.0.1"),
            ("{match: {name: eth0}, ntp: [\"a b\"]}", "`a b` under ntp is no host; write names or addresses"),
        ] {
            assert_eq!(interface(yaml).expect_err(yaml), expected, "{yaml}");
        }
    }
}
