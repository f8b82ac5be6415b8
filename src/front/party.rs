//! Who shares connections to kube-apiserver.

use std::net::SocketAddr;

use aws_lc_rs::digest::{Context, SHA256};
use http::HeaderMap;
use k3s_pki::ClientIdentity;

use super::headers;

/// Clients that nothing but their own doing can part from kube-apiserver: they share connections with each other and with nobody else.
///
/// A token's is of whoever knows the token, so that nobody who guesses shares one with somebody who is let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Party {
    /// Holders of one certificate, verified: its [credential id](ClientIdentity::credential_id).
    Certificate(String),
    /// Holders of one token; what it proves, kube-apiserver knows.
    Token(TokenDigest),
    /// One connection without credentials, where `--anonymous-auth` lets those ask.
    Anonymous(SocketAddr),
}

/// Stands for a token, and does not give it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenDigest([u8; 32]);

impl Party {
    /// Whoever holds this certificate.
    pub(super) fn of(identity: &ClientIdentity) -> Self {
        Self::Certificate(identity.credential_id.clone())
    }
}

impl TokenDigest {
    /// Of the token in a request, if there is one.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut tokens = headers::bearer_tokens(headers).peekable();
        tokens.peek()?;
        let mut context = Context::new(&SHA256);
        for token in tokens {
            context.update(&(token.len() as u64).to_le_bytes());
            context.update(token.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Some(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn of(headers: &[(&'static str, &'static str)]) -> Option<TokenDigest> {
        let parse = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        TokenDigest::of(&headers.iter().map(parse).collect())
    }

    #[test]
    fn a_token_is_one_party_however_it_is_spelt_and_no_other() {
        let abc = of(&[("authorization", "Bearer abc")]);
        assert!(abc.is_some());
        assert_eq!(of(&[("authorization", "bearer abc "), ("x-other", "1")]), abc);
        for other in [
            &[("authorization", "Bearer abcd")][..],
            &[("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.abc")],
            &[("authorization", "Bearer abc"), ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YQ")],
        ] {
            let digest = of(other);
            assert!(digest.is_some() && digest != abc, "{other:?}");
        }
        assert_eq!(of(&[("authorization", "Basic YWJj")]), None);
        assert_eq!(of(&[]), None);
    }
}
