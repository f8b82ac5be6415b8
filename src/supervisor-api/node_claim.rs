//! What a node says of itself in the headers of a request for a certificate.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use k3s_http::Status;
use k3s_identity::Password;
use k3s_pki::HostName;

/// The node that a certificate is for.
pub const NODE_NAME: HeaderName = HeaderName::from_static("k3s-node-name");
/// What proves that the name is the node's.
pub const NODE_PASSWORD: HeaderName = HeaderName::from_static("k3s-node-password");
/// The node's addresses, with commas between them.
pub const NODE_IP: HeaderName = HeaderName::from_static("k3s-node-ip");

/// With the ending of its Secret, a node's name has to be the name of an object.
const LONGEST: usize = 253 - ".node-password.k3s".len();
/// More addresses than any node has.
const MOST_IPS: usize = 32;

/// A name, what proves that it is the node's, and where the node is reached.
#[derive(Debug, PartialEq, Eq)]
pub struct NodeClaim {
    /// In lower case.
    pub name: HostName,
    /// Only whoever knows it may have the name.
    pub password: Password,
    /// In canonical form: an IPv4 address is one in the spelling of IPv6 too.
    pub ips: Vec<IpAddr>,
}

impl NodeClaim {
    /// The claim in [`NODE_NAME`], [`NODE_PASSWORD`] and [`NODE_IP`].
    ///
    /// # Errors
    ///
    /// 400 if it cannot be one.
    pub fn of(headers: &HeaderMap) -> Result<Self, Status> {
        let header = |name| {
            let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            (!value.is_empty()).then_some(value)
        };
        let name = header(NODE_NAME).ok_or_else(|| Status::bad_request("node name not set"))?;
        let password = header(NODE_PASSWORD).ok_or_else(|| Status::bad_request("node password not set"))?;
        let ips = header(NODE_IP).map(|list| list.split(',').take(MOST_IPS + 1).map(ip).collect::<Result<Vec<_>, _>>());
        let ips = ips.transpose()?.unwrap_or_default();
        if ips.len() > MOST_IPS {
            return Err(Status::bad_request(format!("a node has at most {MOST_IPS} addresses")));
        }
        Ok(Self { name: node_name(name)?, password: Password::new(password), ips })
    }
}

/// A DNS subdomain, as the name of a Node object has to be.
fn node_name(text: &str) -> Result<HostName, Status> {
    let lower = text.to_lowercase();
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let valid = lower.len() <= LONGEST && lower.split('.').all(is_label);
    let problem = || {
        Status::bad_request(format!(
            "{text:?} is not a node name: it is made of at most {LONGEST} letters, digits, dashes and dots; choose another with --node-name"
        ))
    };
    if valid { lower.parse().map_err(|_| problem()) } else { Err(problem()) }
}

fn ip(text: &str) -> Result<IpAddr, Status> {
    let ip: IpAddr = text.parse().map_err(|_| Status::bad_request(format!("invalid node IP address {text:?}")))?;
    Ok(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const NAME: &str = "k3s-node-name";
    const PASSWORD: &str = "k3s-node-password";
    const IPS: &str = "k3s-node-ip";

    fn of(headers: &[(&'static str, &str)]) -> Result<NodeClaim, Status> {
        let parse = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        NodeClaim::of(&headers.iter().map(parse).collect())
    }

    #[test]
    fn names_are_in_lower_case_and_addresses_in_their_order() {
        let claim = of(&[(NAME, "Edge-1.Example"), (PASSWORD, "s3cret"), (IPS, "192.0.2.7,2001:db8::7")]).unwrap();
        assert_eq!(claim.name.as_str(), "edge-1.example");
        assert_eq!(claim.password.expose(), "s3cret");
        assert_eq!(claim.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.7", "2001:db8::7"]);
        for spelling in ["::ffff:192.0.2.7", "::FFFF:c000:207", "0:0:0:0:0:ffff:192.0.2.7"] {
            let claim = of(&[(NAME, "a"), (PASSWORD, "b"), (IPS, spelling)]).unwrap();
            assert_eq!(claim.ips, [IpAddr::from([192, 0, 2, 7])], "{spelling}");
        }
        assert!(of(&[(NAME, "a"), (PASSWORD, "b")]).unwrap().ips.is_empty());
    }

    #[test]
    fn what_is_missing_is_named_as_in_k3s() {
        assert_eq!(of(&[(PASSWORD, "b")]), Err(Status::bad_request("node name not set")));
        assert_eq!(of(&[(NAME, ""), (PASSWORD, "b")]), Err(Status::bad_request("node name not set")));
        assert_eq!(of(&[(NAME, "a")]), Err(Status::bad_request("node password not set")));
    }

    #[test]
    fn what_no_node_can_be_called_is_refused() {
        for name in ["a/b", "../a", "-a", "a-", "a..b", ".a", "*", "a_b", "a b", "a:b", "ä", &"a".repeat(236)] {
            let headers = HeaderMap::from_iter([(NAME, name), (PASSWORD, "b")].map(|(header, value)| {
                (HeaderName::from_static(header), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            }));
            assert!(NodeClaim::of(&headers).is_err(), "{name}");
        }
        for ips in
            ["", ",", "192.0.2.7,", "192.0.2.7;192.0.2.8", "192.0.2.7/24", "edge-1", "192.0.2.07", "fe80::1%eth0"]
        {
            let claim = of(&[(NAME, "a"), (PASSWORD, "b"), (IPS, ips)]);
            assert_eq!(claim.is_ok(), ips.is_empty(), "{ips}");
        }
        assert!(of(&[(NAME, "a"), (PASSWORD, "b"), (IPS, &["::1"; 33].join(","))]).is_err());
    }
}
