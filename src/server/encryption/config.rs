//! kube-apiserver's configuration of encryption, as far as k3s manages it: Secrets, by AES-CBC or XSalsa20-Poly1305.
//!
//! The first provider writes; each reads what it once wrote. `identity` is the clear text: at the end it reads Secrets from before
//! encryption, at the beginning it writes and encryption is off.

use std::fmt;

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use k3s_config::server::EncryptionProvider;
use serde::{Deserialize, Serialize};

/// Bytes of a key, for both ciphers.
const KEY: usize = 32;
/// Keys of one configuration: a rotation has two of them.
const MOST_KEYS: usize = 64;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncryptionConfig {
    /// In the order in which they are tried; exactly one is [`Provider::Identity`].
    providers: Vec<Provider>,
}

/// Why a file is none that is managed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// Not this kind of document.
    #[error("it is no EncryptionConfiguration in JSON")]
    Form,
    /// Other resources are in it.
    #[error("it is about more than Secrets")]
    Resources,
    /// `kms`, `aesgcm` or none.
    #[error("it has providers other than aescbc, secretbox and identity")]
    Providers,
    /// Missing, of a wrong length, or too many of them.
    #[error("a key is not 32 bytes in base64, or there are too many or two of one name")]
    Keys,
    /// Secrets from before encryption could not be read, or it could not be switched off.
    #[error("it has not the provider identity once")]
    Identity,
}

/// There is no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key can be made: the cryptographic library failed")]
pub struct NoKey;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Provider {
    AesCbc(Keys),
    Secretbox(Keys),
    Identity(Empty),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// A key, whose secret is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    name: String,
    secret: String,
}

/// How Go writes it, field by field.
#[derive(Deserialize, Serialize)]
struct Document {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    resources: Vec<Resource>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

const KIND: &str = "EncryptionConfiguration";
const API_VERSION: &str = "apiserver.config.k8s.io/v1";
const SECRETS: &str = "secrets";

impl EncryptionConfig {
    /// One that encrypts with a new key, as a server starts with.
    pub(super) fn new(provider: EncryptionProvider) -> Result<Self, NoKey> {
        let key = Key::random(provider.first_key().to_owned())?;
        Ok(Self { providers: vec![Provider::of(provider, vec![key]), Provider::Identity(Empty {})] })
    }

    /// One that encrypts nothing, and lets servers read what others are going to encrypt.
    pub(super) fn identity() -> Self {
        Self { providers: vec![Provider::Identity(Empty {})] }
    }

    /// # Errors
    /// It is not one that k3s or this program has written.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, BadConfig> {
        let document: serde_json::Value = serde_json::from_slice(json).map_err(|_| BadConfig::Form)?;
        if document["kind"] != KIND || document["apiVersion"] != API_VERSION {
            return Err(BadConfig::Form);
        }
        let resources = document["resources"].as_array().map_or(&[][..], Vec::as_slice);
        let [resource] = resources else { return Err(BadConfig::Resources) };
        if resource["resources"] != serde_json::json!([SECRETS]) {
            return Err(BadConfig::Resources);
        }
        let Resource { providers, .. } = serde_json::from_value(resource.clone()).map_err(|_| BadConfig::Providers)?;
        let config = Self { providers };
        config.check().map(|()| config)
    }

    fn check(&self) -> Result<(), BadConfig> {
        let keys: Vec<_> = self.keys().map(|(_, key)| key).collect();
        let is_key = |key: &&Key| BASE64_STANDARD.decode(&key.secret).is_ok_and(|secret| secret.len() == KEY);
        let named_twice = (1..keys.len()).any(|at| keys[..at].iter().any(|key| key.name == keys[at].name));
        let is_empty = |provider: &Provider| provider.keys().is_some_and(|keys| keys.keys.is_empty());
        if keys.len() > MOST_KEYS || !keys.iter().all(is_key) || named_twice || self.providers.iter().any(is_empty) {
            return Err(BadConfig::Keys);
        }
        match self.providers.iter().filter(|provider| provider.keys().is_none()).count() {
            1 => Ok(()),
            _ => Err(BadConfig::Identity),
        }
    }

    /// As it stands in the file.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let resource = Resource { resources: vec![SECRETS.to_owned()], providers: self.providers.clone() };
        let document =
            Document { kind: KIND.to_owned(), api_version: API_VERSION.to_owned(), resources: vec![resource] };
        serde_json::to_vec(&document).expect("texts and lists are JSON")
    }

    /// Whether Secrets are encrypted when they are written.
    pub(crate) fn encrypts(&self) -> bool {
        self.providers.first().is_some_and(|provider| provider.keys().is_some())
    }

    /// The key that Secrets are written with, as k3s names it.
    pub(crate) fn active_key(&self) -> Option<String> {
        self.names().next().filter(|_| self.encrypts())
    }

    /// The other keys.
    pub(crate) fn inactive_keys(&self) -> Vec<String> {
        self.names().skip(usize::from(self.encrypts())).collect()
    }

    /// With a new key that only reads so far.
    pub(super) fn with_new_key(&self, provider: EncryptionProvider, now: Timestamp) -> Result<Self, NoKey> {
        // The newest one, whatever the clock says.
        let newest = self.keys().filter_map(|(_, key)| key.made()).max();
        let made = newest
            .and_then(|newest| newest.checked_add(SignedDuration::from_secs(1)).ok())
            .map_or(now, |next| next.max(now));
        let key = Key::random(format!("{}-{made:.0}", provider.first_key()))?;
        let mut providers = self.providers.clone();
        if let Some(keys) =
            providers.iter_mut().filter(|known| known.kind() == Some(provider)).find_map(Provider::keys_mut)
        {
            keys.keys.push(key);
        } else {
            let end = providers.len() - usize::from(self.encrypts());
            providers.insert(end, Provider::of(provider, vec![key]));
        }
        Ok(Self { providers })
    }

    /// With the newest key as the one that writes, and encryption on.
    pub(super) fn with_newest_first(&self) -> Self {
        // k3s' first keys have no date in their name.
        let Some((kind, newest)) = self.keys().max_by_key(|(_, key)| key.made()) else { return self.clone() };
        let newest = newest.clone();
        let mut providers = self.providers.clone();
        for keys in providers.iter_mut().filter(|provider| provider.kind() == Some(kind)).filter_map(Provider::keys_mut)
        {
            if let Some(at) = keys.keys.iter().position(|key| *key == newest) {
                keys.keys[..=at].rotate_right(1);
            }
        }
        providers.sort_by_key(|provider| match provider.kind() {
            Some(of) if of == kind => 0,
            Some(_) => 1,
            None => 2,
        });
        Self { providers }
    }

    /// The same keys, and encryption on or off; `None` where there is no key to encrypt with.
    pub(super) fn switched(&self, on: bool) -> Option<Self> {
        self.keys().next()?;
        let mut providers = self.providers.clone();
        providers.sort_by_key(|provider| (provider.kind().is_none()) == on);
        Some(Self { providers })
    }

    /// Without the keys that nothing is written with any more. Off, it keeps all of them.
    pub(super) fn without_old_keys(&self) -> Self {
        if !self.encrypts() {
            return self.clone();
        }
        let mut providers = self.providers.clone();
        let mut is_first = true;
        providers.retain_mut(|provider| match provider.keys_mut() {
            Some(keys) => {
                keys.keys.truncate(1);
                std::mem::take(&mut is_first)
            }
            None => true,
        });
        Self { providers }
    }

    /// Whether there are keys beside the one that writes.
    pub(super) fn has_old_keys(&self) -> bool {
        self.keys().count() > 1
    }

    fn keys(&self) -> impl Iterator<Item = (EncryptionProvider, &Key)> {
        self.providers
            .iter()
            .filter_map(|provider| Some((provider.kind()?, provider.keys()?)))
            .flat_map(|(kind, keys)| keys.keys.iter().map(move |key| (kind, key)))
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let cipher = |kind| match kind {
            EncryptionProvider::AesCbc => "AES-CBC",
            EncryptionProvider::Secretbox => "XSalsa20-POLY1305",
        };
        self.keys().map(move |(kind, key)| format!("{} {}", cipher(kind), key.name))
    }
}

/// By what servers compare their files.
pub(crate) fn hash_of(file: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, file).as_ref())
}

impl Provider {
    fn of(kind: EncryptionProvider, keys: Vec<Key>) -> Self {
        match kind {
            EncryptionProvider::AesCbc => Self::AesCbc(Keys { keys }),
            EncryptionProvider::Secretbox => Self::Secretbox(Keys { keys }),
        }
    }

    /// `None` for the clear text.
    fn kind(&self) -> Option<EncryptionProvider> {
        match self {
            Self::AesCbc(_) => Some(EncryptionProvider::AesCbc),
            Self::Secretbox(_) => Some(EncryptionProvider::Secretbox),
            Self::Identity(_) => None,
        }
    }

    fn keys(&self) -> Option<&Keys> {
        match self {
            Self::AesCbc(keys) | Self::Secretbox(keys) => Some(keys),
            Self::Identity(_) => None,
        }
    }

    fn keys_mut(&mut self) -> Option<&mut Keys> {
        match self {
            Self::AesCbc(keys) | Self::Secretbox(keys) => Some(keys),
            Self::Identity(_) => None,
        }
    }
}

impl Key {
    fn random(name: String) -> Result<Self, NoKey> {
        let mut bytes = [0; KEY];
        rand::fill(&mut bytes).map_err(|_| NoKey)?;
        Ok(Self { name, secret: BASE64_STANDARD.encode(bytes) })
    }

    /// When, as its name says.
    fn made(&self) -> Option<Timestamp> {
        let (_, date) = self.name.split_once('-')?;
        date.parse().ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AES: EncryptionProvider = EncryptionProvider::AesCbc;
    const BOX: EncryptionProvider = EncryptionProvider::Secretbox;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Providers and keys, in order.
    fn order(config: &EncryptionConfig) -> Vec<String> {
        let of = |provider: &Provider| match provider.keys() {
            Some(keys) => keys.keys.iter().map(|key| key.name.clone()).collect::<Vec<_>>().join(" "),
            None => "identity".to_owned(),
        };
        config.providers.iter().map(of).collect()
    }

    #[test]
    fn the_file_is_k3s() {
        let config = EncryptionConfig::new(AES).unwrap();
        let secret = config.keys().next().unwrap().1.secret.clone();
        let expected = format!(
            r#"{{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{{"resources":["secrets"],"providers":[{{"aescbc":{{"keys":[{{"name":"aescbckey","secret":"{secret}"}}]}}}},{{"identity":{{}}}}]}}]}}"#
        );
        assert_eq!(String::from_utf8(config.to_json()).unwrap(), expected);
        assert_eq!(EncryptionConfig::parse(&config.to_json()), Ok(config.clone()));
        assert_eq!(config.active_key().as_deref(), Some("AES-CBC aescbckey"));
        assert!(!format!("{config:?}").contains(&secret));
    }

    #[test]
    fn a_rotation_reads_with_both_keys_then_writes_with_the_new_one_and_then_forgets_the_old_one() {
        let before = EncryptionConfig::new(AES).unwrap();
        let prepared = before.with_new_key(AES, at(0)).unwrap();
        assert_eq!(order(&prepared), ["aescbckey aescbckey-2027-01-15T08:00:00Z", "identity"]);
        let rotated = prepared.with_newest_first();
        assert_eq!(order(&rotated), ["aescbckey-2027-01-15T08:00:00Z aescbckey", "identity"]);
        assert_eq!(rotated.inactive_keys(), ["AES-CBC aescbckey"]);
        let after = rotated.without_old_keys();
        assert_eq!(order(&after), ["aescbckey-2027-01-15T08:00:00Z", "identity"]);
        let again = after.with_new_key(AES, at(1)).unwrap().with_newest_first();
        assert_eq!(again.active_key().unwrap(), "AES-CBC aescbckey-2027-01-15T08:00:01Z");
        // Also by a clock that goes backwards.
        let earlier = again.with_new_key(AES, at(-3600)).unwrap().with_newest_first();
        assert_eq!(earlier.active_key().unwrap(), "AES-CBC aescbckey-2027-01-15T08:00:02Z");
    }

    #[test]
    fn a_rotation_leads_to_another_cipher() {
        let both = EncryptionConfig::new(AES).unwrap().with_new_key(BOX, at(0)).unwrap();
        assert_eq!(order(&both), ["aescbckey", "secretboxkey-2027-01-15T08:00:00Z", "identity"]);
        let rotated = both.with_newest_first();
        assert_eq!(order(&rotated), ["secretboxkey-2027-01-15T08:00:00Z", "aescbckey", "identity"]);
        assert_eq!(order(&rotated.without_old_keys()), ["secretboxkey-2027-01-15T08:00:00Z", "identity"]);
    }

    #[test]
    fn encryption_is_switched_by_where_the_clear_text_stands() {
        let on = EncryptionConfig::new(BOX).unwrap();
        let off = on.switched(false).unwrap();
        assert_eq!(order(&off), ["identity", "secretboxkey"]);
        assert!(!off.encrypts() && off.active_key().is_none());
        assert_eq!(off.without_old_keys(), off, "it still reads what was encrypted");
        assert_eq!(off.switched(true).unwrap(), on);
        let none = EncryptionConfig::identity();
        assert_eq!(none.switched(true), None);
        let first = none.with_new_key(AES, at(0)).unwrap();
        assert_eq!(order(&first), ["identity", "aescbckey-2027-01-15T08:00:00Z"]);
        assert_eq!(order(&first.with_newest_first()), ["aescbckey-2027-01-15T08:00:00Z", "identity"]);
    }

    #[test]
    fn what_k3s_has_not_written_is_not_touched() {
        let written = String::from_utf8(EncryptionConfig::new(AES).unwrap().to_json()).unwrap();
        for (from, to, why) in [
            ("apiserver.config.k8s.io/v1", "v2", BadConfig::Form),
            (r#"["secrets"]"#, r#"["secrets","configmaps"]"#, BadConfig::Resources),
            ("aescbc\"", "aesgcm\"", BadConfig::Providers),
            (r#"secret":""#, r#"secret":"AA"#, BadConfig::Keys),
            (r#",{"identity":{}}"#, "", BadConfig::Identity),
        ] {
            assert_eq!(EncryptionConfig::parse(written.replacen(from, to, 1).as_bytes()), Err(why), "{to}");
        }
        assert_eq!(EncryptionConfig::parse(b""), Err(BadConfig::Form));
    }
}
