//! What nodes and servers send us, as functions of arbitrary bytes. They panic where a promise is broken.

use std::time::SystemTime;

use crate::{Certificate, PublicKey, authority_succeeds, service_keys_succeed};

/// Signing requests and certificates: whoever reads one comes to an end, and a key that is proven is one.
pub fn signing_requests(data: &[u8]) {
    if let Ok(key) = PublicKey::from_request(data) {
        assert!(!key.spki().is_empty());
    }
    if let Ok(certificate) = Certificate::parse(data) {
        assert!(!certificate.public_key.spki().is_empty());
    }
    // Of PEM texts, the first certificate is looked into; of authorities that are to replace others, all.
    let _ = Certificate::first_of(data);
    let _ = authority_succeeds(data, data, data, SystemTime::UNIX_EPOCH);
    let _ = service_keys_succeed(data, data);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Also what fuzzers have found once lies there.
    #[test]
    fn every_seed_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/signing-requests");
        for seed in fs::read_dir(corpus).unwrap() {
            signing_requests(&fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
