//! Subject alternative names.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A host or node name: letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

/// A name or address that a serving certificate is valid for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum San {
    /// One name.
    Dns(HostName),
    /// Every name one label below: `*.` in front of this.
    Wildcard(HostName),
    /// An address, canonical when it comes by [`From`] or [`FromStr`].
    Ip(IpAddr),
}

/// A text that is neither an address nor a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor a host name")]
pub struct InvalidSan(String);

/// A text that is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host name: letters, digits, '-', '_' and '.' are allowed, with a letter or digit at both ends")]
pub struct InvalidHostName(String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<label>.<self>`, where both are known to be well formed.
    pub(crate) fn below(&self, labels: &'static str) -> Self {
        Self(format!("{labels}.{}", self.0))
    }

    /// For names in our own source.
    pub(crate) fn known(name: &'static str) -> Self {
        Self(name.to_owned())
    }
}

impl FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(name: &str) -> Result<Self, InvalidHostName> {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let end = |c: char| c.is_ascii_alphanumeric();
        if name.chars().all(inner) && name.starts_with(end) && name.ends_with(end) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidHostName(name.to_owned()))
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for San {
    type Err = InvalidSan;

    /// An address if it is one, else a name in the characters that k3s lets into its certificates.
    fn from_str(text: &str) -> Result<Self, InvalidSan> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let name = match text.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Wildcard),
            None => text.parse().map(Self::Dns),
        };
        name.map_err(|_| InvalidSan(text.to_owned()))
    }
}

impl San {
    /// Whether a certificate with this name is one for `name` too. Names are compared as DNS does, and a wildcard stands for one label.
    pub fn covers_name(&self, name: &HostName) -> bool {
        match self {
            Self::Dns(own) => own.0.eq_ignore_ascii_case(&name.0),
            Self::Wildcard(parent) => {
                name.0.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(&parent.0))
            }
            Self::Ip(_) => false,
        }
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => name.fmt(f),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl From<IpAddr> for San {
    /// An IPv4 address that is written as an IPv6 one (`::ffff:192.0.2.1`) is the IPv4 address: clients take the one for the other.
    fn from(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }
}

impl From<HostName> for San {
    fn from(name: HostName) -> Self {
        Self::Dns(name)
    }
}

/// What this machine calls itself.
pub(crate) fn loopback() -> BTreeSet<San> {
    [HostName::known("localhost").into(), San::Ip(Ipv4Addr::LOCALHOST.into()), San::Ip(Ipv6Addr::LOCALHOST.into())]
        .into()
}

/// What pods call the API server.
pub(crate) fn kubernetes(cluster_domain: &HostName) -> BTreeSet<San> {
    [
        HostName::known("kubernetes").into(),
        HostName::known("kubernetes.default").into(),
        HostName::known("kubernetes.default.svc").into(),
        cluster_domain.below("kubernetes.default.svc").into(),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_names_and_wildcards() {
        assert_eq!("10.0.0.1".parse(), Ok(San::Ip([10, 0, 0, 1].into())));
        assert_eq!("::ffff:10.0.0.1".parse(), Ok(San::Ip([10, 0, 0, 1].into())));
        assert!(matches!("fd00::1".parse(), Ok(San::Ip(IpAddr::V6(_)))));
        assert!(matches!("*.example.com".parse(), Ok(San::Wildcard(_))));
        for name in ["a", "edge-1.example.com", "node_1", "K3S"] {
            assert!(matches!(name.parse(), Ok(San::Dns(_))), "{name}");
        }
        for bad in ["", "*", "*.", "*.*.a", "-a", "a.", "a b", "a:b", "exämple", "a\0b"] {
            assert!(bad.parse::<San>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_covered_in_any_case_and_by_one_label_of_a_wildcard() {
        let covers = |san: &str, name: &str| san.parse::<San>().unwrap().covers_name(&name.parse().unwrap());
        assert!(covers("API.example.com", "api.Example.com") && covers("*.Example.com", "api.example.com"));
        for (san, name) in [
            ("api.example.com", "example.com"),
            ("*.example.com", "example.com"),
            ("*.example.com", "a.b.example.com"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert!(!covers(san, name), "{san} {name}");
        }
    }

    #[test]
    fn they_are_shown_as_they_are_given() {
        for text in ["10.0.0.1", "fd00::1", "*.example.com", "edge-1"] {
            assert_eq!(text.parse::<San>().unwrap().to_string(), text);
        }
    }
}
