//! A certificate in use that can be exchanged while in use.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::key::PrivateKey;

/// The certificate that new handshakes show; connections that stand keep theirs.
#[derive(Debug)]
pub struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

/// Why PEM text is no certificate with its key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The certificate's text holds none, or a broken one.
    #[error("it holds no readable certificate: {0}")]
    Certificate(rustls::pki_types::pem::Error),
    /// The key's text holds no private key that TLS can use.
    #[error("there is no usable private key beside it")]
    Key,
    /// They do not belong together.
    #[error("the private key beside it belongs to another certificate")]
    Mismatch,
}

impl CurrentCertificate {
    /// Starts with this one.
    pub fn new(certificate: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(certificate)))
    }

    /// Starts with a certificate (followed by its chain) and its key, both PEM.
    ///
    /// # Errors
    /// One of them is not there or cannot be parsed, or they do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(CertificateError::Certificate)?;
        if chain.is_empty() {
            return Err(CertificateError::Certificate(rustls::pki_types::pem::Error::NoItemsFound));
        }
        let key = PrivateKey::from_pem(key).ok_or(CertificateError::Key)?;
        let certified = CertifiedKey::new(chain, key.signer());
        certified.keys_match().map_err(|_| CertificateError::Mismatch)?;
        Ok(Self::new(certified))
    }

    /// Shows this one from the next handshake on.
    pub fn replace(&self, certificate: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }

    /// Shows what the other one shows, from the next handshake on.
    pub fn take_over(&self, other: &Self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other.current();
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for CurrentCertificate {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_comes_with_its_own_key() {
        let [one, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let certificate = CertificateParams::default().self_signed(&one).unwrap().pem();
        let (one, other) = (one.serialize_pem(), other.serialize_pem());
        assert!(CurrentCertificate::from_pem(certificate.as_bytes(), one.as_bytes()).is_ok());

        let refusal = |certificate: &str, key: &str| {
            CurrentCertificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(refusal(&certificate, &other), "the private key beside it belongs to another certificate");
        assert_eq!(refusal(&certificate, "?"), "there is no usable private key beside it");
        assert!(refusal("", &one).starts_with("it holds no readable certificate"));
    }
}
