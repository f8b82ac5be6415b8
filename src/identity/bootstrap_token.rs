//! Bootstrap tokens: short-lived secrets that nodes join with, each a Secret `kube-system/bootstrap-token-<id>` of type
//! [`SECRET_TYPE`]. The format is Kubernetes' own: kubeadm reads and writes the same, and kube-apiserver authenticates by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use aws_lc_rs::rand;
use jiff::Timestamp;

use crate::{error::Error, token::Password};

/// The type of their Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// The group that `k3s token create` puts tokens into unless told otherwise.
pub const DEFAULT_GROUP: &str = "system:bootstrappers:k3s:default-node-token";

const ID: &str = "token-id";
const SECRET: &str = "token-secret";
const DESCRIPTION: &str = "description";
const EXPIRATION: &str = "expiration";
const USAGE: &str = "usage-bootstrap-";
const GROUPS: &str = "auth-extra-groups";

/// What the groups of a token begin with; the rest is letters, digits, `:` and `-`.
const GROUP_PREFIX: &str = "system:bootstrappers:";

/// `<id>.<secret>`, `[a-z0-9]{6}.[a-z0-9]{16}`: the id is public. Its `Display` shows the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: Password,
}

/// A bootstrap token with all that its Secret says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapTokenSecret {
    /// The token.
    pub token: BootstrapToken,
    /// What it is for, for people; may be empty.
    pub description: String,
    /// When it ends; `None` is never.
    pub expires: Option<Timestamp>,
    /// What it may be used for.
    pub usages: BTreeSet<Usage>,
    /// Its bearer's groups beside `system:bootstrappers`, in the order given.
    pub groups: Vec<BootstrapGroup>,
}

/// What a bootstrap token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// Joining.
    Authentication,
    /// Signing the ConfigMap `kube-public/cluster-info`.
    Signing,
}

/// A group that a bootstrap token's bearer may be in: `system:bootstrappers:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapGroup(String);

/// A text that is no bootstrap token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a bootstrap token is 6 and 16 lower-case letters or digits with a dot between, such as `k3s token generate` prints"
)]
pub struct NoBootstrapToken;

/// A text that is no usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bootstrap token is for authentication, signing or both")]
pub struct NoUsage;

/// A text that is no group of bootstrap tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bootstrap token's group is {GROUP_PREFIX} followed by lower-case letters, digits, `:` and `-`")]
pub struct NoBootstrapGroup;

/// What is wrong with a Secret that calls itself a bootstrap token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// Its id or secret.
    #[error(transparent)]
    Token(#[from] NoBootstrapToken),
    /// Kubernetes finds it by its name only.
    #[error("it has to be called {expected}")]
    Name {
        /// The name that fits the id.
        expected: String,
    },
    /// Its end is no time.
    #[error("its {EXPIRATION} is not a time such as 2026-01-02T03:04:05Z")]
    Expiration,
}

impl BootstrapToken {
    /// A random one.
    ///
    /// # Errors
    /// [`Error::Random`] if there is no randomness.
    pub fn random() -> Result<Self, Error> {
        Ok(Self { id: random_text::<6>()?, secret: Password::new(random_text::<16>()?) })
    }

    /// The public part, by which it is listed and deleted.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret part.
    pub fn secret(&self) -> &Password {
        &self.secret
    }

    /// Whether a text could be the id of one.
    pub fn is_id(text: &str) -> bool {
        is_lower_alphanumeric(text, 6)
    }

    /// The name of the Secret of the token with this id.
    pub fn secret_name(id: &str) -> String {
        format!("bootstrap-token-{id}")
    }
}

impl BootstrapTokenSecret {
    /// The Secret's data. Times are cut to seconds, as in kubeadm.
    pub fn to_data(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::new();
        let mut set = |key: &str, value: String| data.insert(key.to_owned(), value.into_bytes());
        set(ID, self.token.id.clone());
        set(SECRET, self.token.secret.expose().to_owned());
        if !self.description.is_empty() {
            set(DESCRIPTION, self.description.clone());
        }
        if let Some(expires) = self.expires {
            set(EXPIRATION, format!("{expires:.0}"));
        }
        for usage in &self.usages {
            set(&format!("{USAGE}{usage}"), "true".to_owned());
        }
        if !self.groups.is_empty() {
            set(GROUPS, self.groups.iter().map(BootstrapGroup::as_str).collect::<Vec<_>>().join(","));
        }
        data
    }

    /// What the Secret `name` says. Usages and groups that nobody heeds are left out.
    ///
    /// # Errors
    /// [`BadSecret`]: kube-apiserver does not accept the token either.
    pub fn from_data(name: &str, data: &BTreeMap<String, Vec<u8>>) -> Result<Self, BadSecret> {
        let text = |key: &str| data.get(key).map(|value| String::from_utf8_lossy(value)).unwrap_or_default();
        let token: BootstrapToken = format!("{}.{}", text(ID), text(SECRET)).parse()?;
        let expected = BootstrapToken::secret_name(&token.id);
        if name != expected {
            return Err(BadSecret::Name { expected });
        }
        let expires = match text(EXPIRATION).as_ref() {
            "" => None,
            time => Some(time.parse().map_err(|_| BadSecret::Expiration)?),
        };
        let is_on = |usage: &Usage| text(&format!("{USAGE}{usage}")) == "true";
        Ok(Self {
            token,
            description: text(DESCRIPTION).into_owned(),
            expires,
            usages: [Usage::Authentication, Usage::Signing].into_iter().filter(is_on).collect(),
            groups: text(GROUPS).split(',').filter_map(|group| group.parse().ok()).collect(),
        })
    }

    /// Whether it has ended. kube-controller-manager deletes it soon after.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

impl FromStr for BootstrapToken {
    type Err = NoBootstrapToken;

    fn from_str(text: &str) -> Result<Self, NoBootstrapToken> {
        match text.split_once('.') {
            Some((id, secret)) if Self::is_id(id) && is_lower_alphanumeric(secret, 16) => {
                Ok(Self { id: id.to_owned(), secret: Password::new(secret) })
            }
            _ => Err(NoBootstrapToken),
        }
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret.expose())
    }
}

impl FromStr for Usage {
    type Err = NoUsage;

    fn from_str(text: &str) -> Result<Self, NoUsage> {
        match text {
            "authentication" => Ok(Self::Authentication),
            "signing" => Ok(Self::Signing),
            _ => Err(NoUsage),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authentication => "authentication",
            Self::Signing => "signing",
        })
    }
}

impl BootstrapGroup {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BootstrapGroup {
    type Err = NoBootstrapGroup;

    fn from_str(text: &str) -> Result<Self, NoBootstrapGroup> {
        let rest = text.strip_prefix(GROUP_PREFIX).ok_or(NoBootstrapGroup)?;
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = rest.len() <= 256 && rest.bytes().all(|byte| is_name(byte) || byte == b':' || byte == b'-');
        if fits && rest.bytes().last().is_some_and(is_name) { Ok(Self(text.to_owned())) } else { Err(NoBootstrapGroup) }
    }
}

fn is_lower_alphanumeric(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn random_text<const N: usize>() -> Result<String, Error> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // The largest multiple of 36 in a byte: what lies above would make the first letters likelier.
    const FAIR: u8 = 252;
    let mut text = String::with_capacity(N);
    while text.len() < N {
        let mut bytes = [0; N];
        rand::fill(&mut bytes).map_err(|_| Error::Random)?;
        let letters =
            bytes.iter().filter(|byte| **byte < FAIR).map(|byte| char::from(ALPHABET[usize::from(byte % 36)]));
        text.extend(letters.take(N - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(data: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, &str)> {
        data.iter().map(|(key, value)| (key.as_str(), str::from_utf8(value).unwrap())).collect()
    }

    #[test]
    fn a_secret_is_kubeadms_own() {
        let secret = BootstrapTokenSecret {
            token: "abcdef.0123456789abcdef".parse().unwrap(),
            description: "for the lab".into(),
            expires: Some("2026-11-22T10:00:00.7Z".parse().unwrap()),
            usages: [Usage::Signing, Usage::Authentication].into(),
            groups: vec![DEFAULT_GROUP.parse().unwrap(), "system:bootstrappers:lab".parse().unwrap()],
        };
        let data = secret.to_data();
        assert_eq!(
            texts(&data),
            [
                ("auth-extra-groups", "system:bootstrappers:k3s:default-node-token,system:bootstrappers:lab"),
                ("description", "for the lab"),
                ("expiration", "2026-11-22T10:00:00Z"),
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-authentication", "true"),
                ("usage-bootstrap-signing", "true"),
            ]
        );
        let read = BootstrapTokenSecret::from_data("bootstrap-token-abcdef", &data).unwrap();
        let expires = "2026-11-22T10:00:00Z".parse().unwrap();
        assert_eq!(read, BootstrapTokenSecret { expires: Some(expires), ..secret });
        assert!(read.has_expired(expires) && !read.has_expired("2026-11-22T09:59:59Z".parse().unwrap()));
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        let token = BootstrapToken::random().unwrap();
        let bare = BootstrapTokenSecret {
            token,
            description: String::new(),
            expires: None,
            usages: [].into(),
            groups: vec![],
        };
        assert_eq!(
            texts(&bare.to_data()).iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            ["token-id", "token-secret"]
        );
    }

    #[test]
    fn a_secret_that_kubernetes_does_not_accept_is_refused() {
        let read = |name: &str, id: &str, secret: &str, expiration: &str| {
            let data = [("token-id", id), ("token-secret", secret), ("expiration", expiration)];
            let data = data.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).into();
            BootstrapTokenSecret::from_data(name, &data).map(drop)
        };
        let expected = "bootstrap-token-abcdef".to_owned();
        assert_eq!(read(&expected, "abcdef", "0123456789abcdef", "2026-11-22T12:00:00+02:00"), Ok(()));
        assert_eq!(read("bootstrap-token-abcdeg", "abcdef", "0123456789abcdef", ""), Err(BadSecret::Name { expected }));
        assert_eq!(read("bootstrap-token-abcdef", "abcdef", "short", ""), Err(BadSecret::Token(NoBootstrapToken)));
        assert_eq!(read("bootstrap-token-abcdef", "abcdef", "0123456789abcdef", "soon"), Err(BadSecret::Expiration));
    }

    #[test]
    fn random_ones_fit_the_pattern() {
        let tokens: Vec<_> = (0..32).map(|_| BootstrapToken::random().unwrap()).collect();
        assert!(tokens.iter().all(|token| token.to_string().parse() == Ok(token.clone())));
        assert!(tokens.iter().skip(1).all(|token| token.id() != tokens[0].id()));
        assert!(!format!("{:?}", tokens[0]).contains(tokens[0].secret().expose()));
    }

    #[test]
    fn groups_and_usages_are_kubernetes_own() {
        for good in [DEFAULT_GROUP, "system:bootstrappers:a", "system:bootstrappers:a-b:c0"] {
            assert!(good.parse::<BootstrapGroup>().is_ok(), "{good}");
        }
        for bad in ["", "system:masters", "system:bootstrappers:", "system:bootstrappers:a-", "system:bootstrappers:A"]
        {
            assert!(bad.parse::<BootstrapGroup>().is_err(), "{bad}");
        }
        assert!("signing".parse() == Ok(Usage::Signing) && "writing".parse::<Usage>().is_err());
    }
}
