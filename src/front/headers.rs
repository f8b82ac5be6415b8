//! Which headers cross the front, and what it adds: pure functions on header maps.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{self, CONNECTION, UPGRADE},
};
use k3s_http::{CREDENTIAL_ID, REMOTE_GROUP, REMOTE_USER};
use k3s_pki::ClientIdentity;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The subprotocol that carries a browser's bearer token.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// Headers that speak of one connection, not of the message (RFC 9110, 7.6.1); `Connection` names further ones.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    UPGRADE,
];

/// A user or group that a header cannot carry unchanged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client certificate names a user or group that an HTTP header cannot carry: {0:?}")]
pub(super) struct Unspeakable(String);

/// Removes what speaks of the connection that the message came on.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &CONNECTION).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Says who asks, in place of what the client said: as in kube-apiserver, a certificate goes before a token.
pub(super) fn set_identity(headers: &mut HeaderMap, identity: &ClientIdentity) -> Result<(), Unspeakable> {
    headers.remove(header::AUTHORIZATION);
    headers.insert(REMOTE_USER, spoken(&identity.user)?);
    for group in &identity.groups {
        headers.append(REMOTE_GROUP, spoken(group)?);
    }
    headers.insert(CREDENTIAL_ID, spoken(&identity.credential_id)?);
    Ok(())
}

/// Appends the client to those that the request came through: kube-apiserver's audit log names it.
pub(super) fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let client = client.to_canonical().to_string();
    let mut through: Vec<u8> = Vec::new();
    for value in headers.get_all(FORWARDED_FOR) {
        through.extend_from_slice(value.as_bytes());
        through.extend_from_slice(b", ");
    }
    through.extend_from_slice(client.as_bytes());
    let through = HeaderValue::from_bytes(&through).expect("header values joined by a comma are a header value");
    headers.insert(FORWARDED_FOR, through);
}

/// Whether the request brings a token that kube-apiserver will judge.
pub(super) fn has_bearer_token(headers: &HeaderMap) -> bool {
    bearer_tokens(headers).next().is_some()
}

/// The tokens that kube-apiserver will judge: the one of `Authorization`, and a browser's.
pub(super) fn bearer_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = authorization
        .and_then(|value| value.trim().split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty());
    let protocols = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    bearer.into_iter().chain(protocols.filter(|protocol| protocol.starts_with(WEBSOCKET_BEARER)))
}

/// The protocol that the request wants to change its HTTP/1.1 connection to.
pub(super) fn upgrade(version: Version, headers: &HeaderMap) -> Option<&HeaderValue> {
    let asked = version == Version::HTTP_11
        && tokens(headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asked)
}

/// The comma-separated words of every header of that name.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Header values are trimmed on the way: what trimming changes would name somebody else.
fn spoken(name: &str) -> Result<HeaderValue, Unspeakable> {
    let unspeakable = || Unspeakable(name.to_owned());
    if name.trim() != name {
        return Err(unspeakable());
    }
    HeaderValue::from_bytes(name.as_bytes()).map_err(|_| unspeakable())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        headers.iter().map(parse).collect()
    }

    #[test]
    fn headers_of_the_connection_end_here() {
        let mut headers = map(&[
            ("connection", "close, X-Mine"),
            ("connection", "not a name, x-remote-user"),
            ("x-remote-user", "system:admin"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "application/json"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("accept", "application/json")]));
    }

    #[test]
    fn what_cannot_be_spoken_is_refused() {
        assert!(spoken("system:node:jürgen").is_ok());
        for name in [" system:admin", "system:admin\t", "a\nb", "a\0"] {
            assert_eq!(spoken(name), Err(Unspeakable(name.to_owned())));
        }
    }

    #[test]
    fn a_client_is_appended_to_the_proxies_before_us() {
        let mut headers = map(&[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "192.0.2.2, 192.0.2.3")]);
        append_forwarded_for(&mut headers, "::ffff:198.51.100.7".parse().unwrap());
        assert_eq!(headers, map(&[("x-forwarded-for", "192.0.2.1, 192.0.2.2, 192.0.2.3, 198.51.100.7")]));
    }

    #[test]
    fn tokens_are_found_where_kube_apiserver_looks() {
        for (name, value) in [
            ("authorization", "Bearer abc"),
            ("authorization", "bearer  abc"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj"),
        ] {
            assert!(has_bearer_token(&map(&[(name, value)])), "{name}: {value}");
        }
        for value in ["Bearer", "Bearer  ", "Basic YWJj", ""] {
            assert!(!has_bearer_token(&map(&[("authorization", value)])), "{value}");
        }
    }

    #[test]
    fn upgrades_are_asked_for_twice() {
        let asked = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(upgrade(Version::HTTP_11, &asked).unwrap(), "SPDY/3.1");
        assert_eq!(upgrade(Version::HTTP_2, &asked), None);
        assert_eq!(upgrade(Version::HTTP_11, &map(&[("upgrade", "SPDY/3.1")])), None);
        assert_eq!(upgrade(Version::HTTP_11, &map(&[("connection", "upgrade")])), None);
    }
}
