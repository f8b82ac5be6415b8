//! Tokens: what a node shows to join, and how it knows the cluster it joins.
//!
//! ```text
//! token       = "K10" hash "::" credentials | "K10" credentials | bootstrap | password
//! hash        = "" | 64 hex digits            ; what the cluster's certificate authority must be
//! credentials = user ":" password | bootstrap
//! bootstrap   = [a-z0-9]{6} "." [a-z0-9]{16}  ; as kubeadm's
//! ```

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};
use data_encoding::HEXLOWER;
use k3s_pki::{Unreadable, root};

use crate::{bootstrap_token::BootstrapToken, error::Error};

const PREFIX: &str = "K10";

/// A parsed token. Its `Display` shows the secret: it is what gets stored and handed to users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The authority that the cluster must show; `None` trusts the first one seen.
    pub ca_hash: Option<CaHash>,
    /// What the bearer proves itself with.
    pub credentials: Credentials,
}

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// HTTP Basic. Agents log in as `node`, servers as `server`, whatever the token says.
    Basic {
        /// Empty for a bare password.
        user: String,
        /// The secret.
        password: Password,
    },
    /// A Kubernetes bootstrap token, sent as Bearer.
    Bootstrap {
        /// `id.secret`
        token: BootstrapToken,
    },
}

/// A secret text: `Debug` shows nothing of it, comparing takes the same time wherever it differs.
#[derive(Clone)]
pub struct Password(String);

/// A SHA-256 in hexadecimal, of what pins a cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaHash(String);

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("the token is empty")]
    Empty,
    /// Between `K10` and `::`.
    #[error("between K10 and :: there must be nothing or the 64 hexadecimal digits of the authority's hash")]
    Hash,
    /// After `::`.
    #[error("after K10 and the authority's hash there must be user:password or a bootstrap token")]
    Credentials,
    /// A line break, most likely.
    #[error("a token has no control characters")]
    ControlCharacter,
    /// What a configuration would refuse.
    #[error("a token of a server has no white space")]
    WhiteSpace,
    /// Where only a password will do.
    #[error("a bootstrap token (6 and 16 characters with a dot between) cannot be the token of a server")]
    Bootstrap,
}

impl Token {
    /// A password of `user`, pinned to an authority.
    pub fn basic(ca_hash: CaHash, user: &str, password: Password) -> Self {
        Self { ca_hash: Some(ca_hash), credentials: Credentials::Basic { user: user.to_owned(), password } }
    }

    /// A bootstrap token, pinned to an authority.
    pub fn bootstrap(ca_hash: CaHash, token: BootstrapToken) -> Self {
        Self { ca_hash: Some(ca_hash), credentials: Credentials::Bootstrap { token } }
    }

    /// The password of a token that is no bootstrap token.
    ///
    /// # Errors
    /// It is a bootstrap token.
    pub fn password(&self) -> Result<&Password, TokenError> {
        match &self.credentials {
            Credentials::Basic { password, .. } => Ok(password),
            Credentials::Bootstrap { .. } => Err(TokenError::Bootstrap),
        }
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.contains(char::is_control) {
            return Err(TokenError::ControlCharacter);
        }
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let credentials = Credentials::bootstrap(text)
                .unwrap_or_else(|| Credentials::Basic { user: String::new(), password: Password::new(text) });
            return Ok(Self { ca_hash: None, credentials });
        };
        let (hash, credentials) = rest.split_once("::").unwrap_or(("", rest));
        Ok(Self { ca_hash: CaHash::parse(hash)?, credentials: credentials.parse()? })
    }
}

impl FromStr for Credentials {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if let Some(bootstrap) = Self::bootstrap(text) {
            return Ok(bootstrap);
        }
        match text.split_once(':') {
            Some((user, password)) if !password.is_empty() => {
                Ok(Self::Basic { user: user.to_owned(), password: Password::new(password) })
            }
            _ => Err(TokenError::Credentials),
        }
    }
}

impl Credentials {
    fn bootstrap(text: &str) -> Option<Self> {
        text.parse().ok().map(|token| Self::Bootstrap { token })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = self.ca_hash.as_ref().map_or("", CaHash::as_str);
        match &self.credentials {
            Credentials::Basic { user, password } => write!(f, "{PREFIX}{hash}::{user}:{}", password.expose()),
            Credentials::Bootstrap { token } => write!(f, "{PREFIX}{hash}::{token}"),
        }
    }
}

impl Password {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// 16 random bytes in hexadecimal, as k3s draws them for servers and nodes.
    ///
    /// # Errors
    /// The kernel gives no randomness.
    pub fn random() -> Result<Self, Error> {
        Ok(Self(random_hex::<16>()?))
    }

    /// The secret, for the one place that has to send or store it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        // Digests are of one length: not even that is told.
        let digest = |password: &Self| digest::digest(&digest::SHA256, password.0.as_bytes());
        verify_slices_are_equal(digest(self).as_ref(), digest(other).as_ref()).is_ok()
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(********)")
    }
}

impl CaHash {
    /// What pins the authority of a bundle (`/cacerts`, `server-ca.crt`): the file itself if it is one certificate; its
    /// root if it is a chain.
    ///
    /// # Errors
    /// It is no PEM, or holds no certificate.
    pub fn of(bundle: &[u8]) -> Result<Self, Unreadable> {
        let pinned = match root(bundle)? {
            Some(root) => digest::digest(&digest::SHA256, &root),
            None => digest::digest(&digest::SHA256, bundle),
        };
        Ok(Self(HEXLOWER.encode(pinned.as_ref())))
    }

    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Option<Self>, TokenError> {
        match text.len() {
            0 => Ok(None),
            64 if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(Some(Self(text.to_owned()))),
            _ => Err(TokenError::Hash),
        }
    }
}

/// `N` random bytes in hexadecimal.
pub(crate) fn random_hex<const N: usize>() -> Result<String, Error> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(HEXLOWER.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn basic(hash: Option<&str>, user: &str, password: &str) -> Result<Token, TokenError> {
        Ok(Token {
            ca_hash: hash.map(|hash| CaHash(hash.to_owned())),
            credentials: Credentials::Basic { user: user.to_owned(), password: Password::new(password) },
        })
    }

    fn bootstrap(hash: Option<&str>, token: &str) -> Result<Token, TokenError> {
        Ok(Token {
            ca_hash: hash.map(|hash| CaHash(hash.to_owned())),
            credentials: Credentials::Bootstrap { token: token.parse().unwrap() },
        })
    }

    #[test]
    fn every_form() {
        let table = [
            (format!("K10{HASH}::server:secret"), basic(Some(HASH), "server", "secret")),
            (format!("K10{HASH}::node:a:b::c"), basic(Some(HASH), "node", "a:b::c")),
            (format!("K10{HASH}::abcdef.0123456789abcdef"), bootstrap(Some(HASH), "abcdef.0123456789abcdef")),
            ("K10::server:secret".into(), basic(None, "server", "secret")),
            ("K10server:secret".into(), basic(None, "server", "secret")),
            ("K10:::secret".into(), basic(None, "", "secret")),
            ("secret".into(), basic(None, "", "secret")),
            ("a::b".into(), basic(None, "", "a::b")),
            ("abcdef.0123456789abcdef".into(), bootstrap(None, "abcdef.0123456789abcdef")),
            ("Abcdef.0123456789abcdef".into(), basic(None, "", "Abcdef.0123456789abcdef")),
            (String::new(), Err(TokenError::Empty)),
            ("K10".into(), Err(TokenError::Credentials)),
            ("K10::".into(), Err(TokenError::Credentials)),
            ("K10::server:".into(), Err(TokenError::Credentials)),
            ("K10::secret".into(), Err(TokenError::Credentials)),
            ("K10abc::server:secret".into(), Err(TokenError::Hash)),
            (format!("K10{}::server:secret", HASH.replace('f', "x")), Err(TokenError::Hash)),
            ("secret\n".into(), Err(TokenError::ControlCharacter)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Token>(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_what_is_parsed(text in "(K10([0-9a-f]{64})?::)?[a-z]{0,6}:?[ -~]{1,40}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string().parse::<Token>(), Ok(token));
            }
        }
    }

    #[test]
    fn secrets_do_not_reach_logs() {
        assert!(!format!("{:?}", "K10::server:hunter2".parse::<Token>()).contains("hunter2"));
    }

    #[test]
    fn one_certificate_is_pinned_by_its_file_and_a_chain_by_its_root() {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let [root, server] = ["root", "server-ca"].map(|name| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.use_authority_key_identifier_extension = true;
            params
        });
        let [root_key, server_key] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let server = server.signed_by(&server_key, &Issuer::from_params(&root, &root_key)).unwrap();
        let root = root.self_signed(&root_key).unwrap();

        let sha256 = |bytes: &[u8]| HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref());
        let pinned = |bundle: &str| CaHash::of(bundle.as_bytes()).unwrap().as_str().to_owned();
        assert_eq!(pinned(&root.pem()), sha256(root.pem().as_bytes()));
        let chain = server.pem() + &root.pem();
        assert_eq!(pinned(&chain), sha256(root.der()));
        let unrelated = root.pem() + &server.pem();
        assert_eq!(pinned(&unrelated), sha256(unrelated.as_bytes()), "a chain that leads nowhere is pinned as a file");
        assert!(CaHash::of(b"my shopping list").is_err());
    }
}
