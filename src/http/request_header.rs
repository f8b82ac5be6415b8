//! The headers by which kube-apiserver is told who asks, and which it believes of us alone (its `--requestheader-…` flags).

use http::{HeaderMap, HeaderName};

/// The user.
pub const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
/// One of the user's groups; a header for each.
pub const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
/// The extra `authentication.kubernetes.io/credential-id`, its slash escaped as kube-apiserver expects.
pub const CREDENTIAL_ID: HeaderName =
    HeaderName::from_static("x-remote-extra-authentication.kubernetes.io%2fcredential-id");

/// Removes whatever kube-apiserver, or a server behind it that takes `_` for `-`, could read as an identity of ours.
pub fn remove_forged_identity(headers: &mut HeaderMap) {
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().replace('_', "-").starts_with("x-remote-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(header).collect()
    }

    #[test]
    fn identities_of_clients_making_are_dropped_in_every_spelling() {
        let mut headers = map(&[
            ("X-Remote-User", "system:admin"),
            ("x-remote-group", "system:masters"),
            ("X_Remote_User", "system:admin"),
            ("X-Remote_Group", "system:masters"),
            ("X-REMOTE-UID", "0"),
            ("X-Remote-Extra-Scopes", "all"),
            ("x_remote_extra_scopes", "all"),
            ("X-Remote-", "?"),
            ("Impersonate-User", "jane"),
            ("X-Remotely-Related", "stays"),
        ]);
        remove_forged_identity(&mut headers);
        assert_eq!(headers, map(&[("impersonate-user", "jane"), ("x-remotely-related", "stays")]));
    }
}
