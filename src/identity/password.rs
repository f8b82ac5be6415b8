//! How a server remembers a node's password: `$1:<salt>:<log2 N>:<r>:<p>:<key>`, salt in hexadecimal, key in base64
//! without padding, by scrypt (RFC 7914). The string lies in the Secret `<node>.node-password.k3s`.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use scrypt::{Params, scrypt};

use crate::error::Error;

const VERSION: &str = "$1";
/// k3s' costs: 32 MiB for a moment.
const COSTS: Costs = Costs { log_n: 15, r: 8, p: 1 };
const KEY_LENGTH: usize = 64;

/// A password's hash.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    salt: Vec<u8>,
    costs: Costs,
    key: Vec<u8>,
}

/// A text that is no such hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a password hash of the form $1:salt:15:8:1:key")]
pub struct MalformedHash;

/// What one derivation costs: 2^log_n · r · 128 bytes of memory, p times.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Costs {
    log_n: u8,
    r: u32,
    p: u32,
}

impl PasswordHash {
    /// Hashes a password with a random salt. Takes a tenth of a second: not for an async worker.
    ///
    /// # Errors
    /// There is no randomness for the salt.
    pub fn new(password: &str) -> Result<Self, Error> {
        let mut salt = vec![0; 8];
        rand::fill(&mut salt).map_err(|_| Error::Random)?;
        let mut key = vec![0; KEY_LENGTH];
        COSTS.derive(password, &salt, &mut key).expect("our own costs are within bounds");
        Ok(Self { salt, costs: COSTS, key })
    }

    /// Whether it is this password's. As slow as [`Self::new`].
    pub fn verify(&self, password: &str) -> bool {
        let mut key = vec![0; self.key.len()];
        self.costs.derive(password, &self.salt, &mut key).is_ok() && verify_slices_are_equal(&key, &self.key).is_ok()
    }
}

impl FromStr for PasswordHash {
    type Err = MalformedHash;

    fn from_str(text: &str) -> Result<Self, MalformedHash> {
        let fields: Vec<&str> = text.split(':').collect();
        let [VERSION, salt, log_n, r, p, key] = fields[..] else { return Err(MalformedHash) };
        let number = |text: &str| text.parse::<u32>().map_err(|_| MalformedHash);
        let costs = Costs { log_n: log_n.parse().map_err(|_| MalformedHash)?, r: number(r)?, p: number(p)? };
        let key = STANDARD_NO_PAD.decode(key).map_err(|_| MalformedHash)?;
        costs.params()?;
        if key.is_empty() {
            return Err(MalformedHash);
        }
        let salt = HEXLOWER_PERMISSIVE.decode(salt.as_bytes()).map_err(|_| MalformedHash)?;
        Ok(Self { salt, costs, key })
    }
}

impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Costs { log_n, r, p } = self.costs;
        write!(f, "{VERSION}:{}:{log_n}:{r}:{p}:{}", HEXLOWER.encode(&self.salt), STANDARD_NO_PAD.encode(&self.key))
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(********)")
    }
}

impl Costs {
    /// A Secret that somebody tampered with must not cost us more than 16 times what ours do.
    const CEILING: u64 = 16 * (8 << 15);

    fn params(self) -> Result<Params, MalformedHash> {
        let n = 1u64.checked_shl(self.log_n.into()).unwrap_or(u64::MAX);
        let work = n.saturating_mul(self.r.into()).saturating_mul(self.p.into());
        if work > Self::CEILING {
            return Err(MalformedHash);
        }
        Params::new(self.log_n, self.r, self.p).map_err(|_| MalformedHash)
    }

    fn derive(self, password: &str, salt: &[u8], key: &mut [u8]) -> Result<(), MalformedHash> {
        scrypt(password.as_bytes(), salt, &self.params()?, key).map_err(|_| MalformedHash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By OpenSSL's scrypt, in the form that k3s writes.
    const KNOWN: &str = "$1:00112233445566ff:15:8:1:\
                         eg7ST7zL9PxNUGg3VlgXyuApUXf+rRyZdR4AjHOtXXFzjiL1XEorj6+KhuXozStBYdW3N1eFhjoQoU9Fcc7BzA";

    #[test]
    fn a_hash_of_k3s_is_verified() {
        let hash: PasswordHash = KNOWN.parse().unwrap();
        assert!(hash.verify("hello world"));
        assert!(!hash.verify("hello worle"));
        assert_eq!(hash.to_string(), KNOWN);
    }

    #[test]
    fn a_new_hash_has_the_same_form_and_its_own_salt() {
        let [first, second] = [(); 2].map(|()| PasswordHash::new("s3cret").unwrap());
        assert_ne!(first, second);
        let text = first.to_string();
        assert_eq!((text.len(), &text[..3], &text[19..27]), (KNOWN.len(), "$1:", ":15:8:1:"));
        assert!(text.parse::<PasswordHash>().unwrap().verify("s3cret"));
    }

    #[test]
    fn anything_else_is_malformed() {
        let key = &KNOWN[27..];
        for bad in [
            "".to_owned(),
            "s3cret".to_owned(),
            KNOWN.replace("$1", "$2"),
            format!("{KNOWN}=="),
            format!("{KNOWN}:"),
            KNOWN.replace("ff:", "fg:"),
            KNOWN.replace("ff:", "f:"),
            KNOWN.replace(key, ""),
            KNOWN.replace(":15:", ":31:"),
            KNOWN.replace(":15:", ":300:"),
            KNOWN.replace(":8:", ":0:"),
            KNOWN.replace(":1:", ":4294967295:"),
        ] {
            assert_eq!(bad.parse::<PasswordHash>(), Err(MalformedHash), "{bad}");
        }
    }
}
