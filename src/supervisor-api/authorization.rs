//! The header `Authorization`: how a request says who makes it, and what is read of it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use k3s_identity::{BootstrapToken, Password};

/// Credentials, not verified.
#[derive(Debug, PartialEq, Eq)]
pub enum Authorization {
    /// An account's password.
    Basic {
        /// Whose.
        user: String,
        /// It may have colons; the user's name has none.
        password: Password,
    },
    /// A bootstrap token.
    Bootstrap(BootstrapToken),
    /// Another token; what it proves only kube-apiserver knows.
    Bearer,
}

impl Authorization {
    /// What the first header brings; a malformed one brings nothing, as in Go.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let (scheme, rest) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let text = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            Some(Self::Basic { user: user.to_owned(), password: Password::new(password) })
        } else if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
            Some(rest.parse().map_or(Self::Bearer, Self::Bootstrap))
        } else {
            None
        }
    }
}

/// Credentials of an account.
pub fn basic(user: &str, password: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        .expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

/// Those of a bootstrap token; `None` if the text can be on no header.
pub fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: &str) -> Option<Authorization> {
        Authorization::of(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(header).unwrap())]))
    }

    #[test]
    fn every_form() {
        let basic = |user: &str, password: &str| {
            Some(Authorization::Basic { user: user.to_owned(), password: Password::new(password) })
        };
        let bootstrap = Authorization::Bootstrap("abcdef.0123456789abcdef".parse().unwrap());
        let table = [
            (format!("Basic {}", STANDARD.encode("node:s3cret:with:colons")), basic("node", "s3cret:with:colons")),
            (format!("basic  {}", STANDARD.encode(":")), basic("", "")),
            ("Bearer abcdef.0123456789abcdef".into(), Some(bootstrap)),
            ("Bearer K10::abcdef.0123456789abcdef".into(), Some(Authorization::Bearer)),
            ("Bearer eyJhbGciOi.a.b".into(), Some(Authorization::Bearer)),
            (format!("Basic {}", STANDARD.encode("no colon")), None),
            ("Basic %%%".into(), None),
            ("Basic".into(), None),
            ("Bearer ".into(), None),
            ("Digest a".into(), None),
            (String::new(), None),
        ];
        for (header, expected) in table {
            assert_eq!(of(&header), expected, "{header}");
        }
        assert_eq!(Authorization::of(&HeaderMap::new()), None);
    }

    #[test]
    fn secrets_do_not_reach_logs() {
        assert!(!format!("{:?}", of("Bearer abcdef.0123456789abcdef")).contains("0123456789abcdef"));
    }
}
