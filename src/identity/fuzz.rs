//! What users and peers send us, as functions of arbitrary bytes. They panic where a promise is broken.

use crate::{BootstrapToken, Passwd, PasswordHash, Token};

/// Tokens, accounts and hashes: whatever is read is written as it was read.
pub fn tokens(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse::<Token>(), Ok(token));
    }
    if let Ok(token) = text.parse::<BootstrapToken>() {
        assert_eq!(token.to_string(), text);
    }
    if let Ok(hash) = text.parse::<PasswordHash>() {
        assert_eq!(hash.to_string().parse(), Ok(hash));
    }
    if let Ok(passwd) = Passwd::parse(text) {
        let again = Passwd::parse(&passwd.to_csv()).expect("what is written can be read");
        assert!(again.users().eq(passwd.users()));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Also what fuzzers have found once lies there.
    #[test]
    fn every_seed_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/tokens");
        for seed in fs::read_dir(corpus).unwrap() {
            tokens(&fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
