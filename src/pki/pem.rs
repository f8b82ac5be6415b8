//! PEM (RFC 7468): reading is rustls', writing is here.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{
    CertificateDer,
    pem::{Error, PemObject},
};

/// One section, in lines of 64 characters, as Go's encoder writes it.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

/// Certificates in their order.
pub(crate) fn encode_certificates<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    certificates.into_iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

/// Every certificate of a bundle, other sections skipped; none is not an error here.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let der = CertificateDer::from((0..100).collect::<Vec<u8>>());
        let pem = encode_certificates([&der, &der]);
        assert!(pem.lines().all(|line| line.len() <= 64));
        assert_eq!(certificates(pem.as_bytes()).unwrap(), [der.clone(), der]);
    }
}
