//! Sealing by the token's password: `<salt>:<base64 of nonce, ciphertext and tag>`, AES-256-GCM with a key by PBKDF2.

use std::num::NonZeroU32;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest, pbkdf2, rand,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use data_encoding::HEXLOWER;

use super::BootstrapError;

/// What every key of bootstrap data begins with.
pub(crate) const PREFIX: &str = "/bootstrap/";

const ROUNDS: NonZeroU32 = NonZeroU32::new(4096).expect("4096 is not zero");

/// What k3s tells tokens apart by: the first twelve digits of the password's SHA-256.
pub(crate) fn token_hash(password: &str) -> String {
    let mut hash = HEXLOWER.encode(digest::digest(&digest::SHA256, password.as_bytes()).as_ref());
    hash.truncate(12);
    hash
}

/// The key in the datastore of what a password seals.
pub(super) fn storage_key(password: &str) -> String {
    format!("{PREFIX}{}", token_hash(password))
}

pub(super) fn seal(password: &str, plain: &[u8]) -> Result<String, BootstrapError> {
    let mut salt = [0; 8];
    rand::fill(&mut salt).map_err(|_| BootstrapError::Crypto)?;
    let salt = HEXLOWER.encode(&salt);
    let mut sealed = plain.to_vec();
    let nonce = key(password, &salt)
        .and_then(|key| key.seal_in_place_append_tag(Aad::empty(), &mut sealed))
        .map_err(|_| BootstrapError::Crypto)?;
    Ok(format!("{salt}:{}", BASE64_STANDARD.encode([nonce.as_ref().as_slice(), &sealed].concat())))
}

/// The error says what is wrong with the text; a wrong password looks like damage.
pub(super) fn open(password: &str, text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let text = str::from_utf8(text).map_err(|_| "it is not text")?;
    let (salt, sealed) = text.split_once(':').ok_or("it has no salt")?;
    let mut sealed = BASE64_STANDARD.decode(sealed).map_err(|_| "it is not base64")?;
    let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN).ok_or("it is too short")?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "it is too short")?;
    let opened =
        key(password, salt).and_then(|key| key.open_in_place(nonce, Aad::empty(), sealed).map(|plain| plain.to_vec()));
    opened.map_err(|_| "it does not decrypt")
}

fn key(password: &str, salt: &str) -> Result<RandomizedNonceKey, aws_lc_rs::error::Unspecified> {
    let mut key = [0; 32];
    // The salt is the text of its digits, not the bytes they stand for.
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA1, ROUNDS, salt.as_bytes(), password.as_bytes(), &mut key);
    RandomizedNonceKey::new(&AES_256_GCM, &key)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    // Made by Python: hashlib.pbkdf2_hmac("sha1", password, salt_text, 4096, 32) and
    // cryptography's AESGCM(key).encrypt(nonce, json, None), with the nonce 00 01 … 0b.
    const DATED: &str = r#"{"ServerCA": {"Timestamp": "2026-01-02T03:04:05.6+01:00", "Content": "c2VydmVyIGNhCg=="}, "PasswdFile": {"Timestamp": "0001-01-01T00:00:00Z", "Content": null}}"#;
    const SEALED_BY_S3CRET: &str = "0123456789abcdef:AAECAwQFBgcICQoLwdX9Gxpko8FXt0/y4wprY5bLHURiyp8IMLIfoRTPlaoxVCFZzR/fdMzNpEX7oSg7a14iDXmBhcadNQlcd6Csuz4v0gyr7BIGu8JS4cT/LX3ofCncUkBr1UfsDSVNiHtTBbo7IK9kkA9LwsqR57guwsvTcAOogcdqXZjIXKLgpdC2dLmutcFh1yJykYZ9WDimGgAELs4/vqBTj9zZF5kXT6KG0CUXoBJeU6BkISU+aA==";
    /// `{"ServerCA": "c2VydmVyIGNhCg=="}`, sealed by the empty password.
    pub(crate) const BARE_SEALED_BY_NOTHING: &str =
        "fedcba9876543210:AAECAwQFBgcICQoL7OvGwUhD9G7I+q5PuMEBOnnjrtsetErzqtu/uDnM4vxQu7WwgkWaOd6ydnACZdJg";

    #[test]
    fn what_others_sealed_opens() {
        assert_eq!(open("s3cret", SEALED_BY_S3CRET.as_bytes()).unwrap(), DATED.as_bytes());
        assert_eq!(open("", BARE_SEALED_BY_NOTHING.as_bytes()).unwrap(), br#"{"ServerCA": "c2VydmVyIGNhCg=="}"#);
        assert_eq!(
            (storage_key("s3cret").as_str(), token_hash("").as_str()),
            ("/bootstrap/1ec1c26b50d5", "e3b0c44298fc")
        );
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_password_only() {
        let sealed = seal("s3cret", b"keys").unwrap();
        assert_eq!(open("s3cret", sealed.as_bytes()), Ok(b"keys".to_vec()));
        assert_eq!(open("other", sealed.as_bytes()), Err("it does not decrypt"));
        assert_ne!(seal("s3cret", b"keys").unwrap(), sealed);
        for damaged in ["", "salt", "salt:?", "salt:AAAA"] {
            assert!(open("s3cret", damaged.as_bytes()).is_err(), "{damaged}");
        }
    }
}
