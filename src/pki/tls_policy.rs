//! Which TLS the clients of a listener may speak.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    version::{TLS12, TLS13},
};

use crate::{client_auth::AnyClientCertificate, current_certificate::CurrentCertificate};

/// Versions and cipher suites. As in k3s, what is asked of kube-apiserver (`--kube-apiserver-arg=tls-min-version=…`, `tls-cipher-suites=…`)
/// is asked of the front and of agents' own listeners too.
#[derive(Debug, Clone)]
pub struct TlsPolicy {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
}

static ALL: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static LATEST: &[&SupportedProtocolVersion] = &[&TLS13];

impl TlsPolicy {
    /// By Go's names. TLS 1.2 is the least that is ever spoken; the suites of 1.3 are not for choice, as in Go; suites that are not known
    /// here are left out, and a name that nobody knows kube-apiserver refuses.
    pub fn new(min_version: Option<&str>, cipher_suites: Option<&str>) -> Self {
        let mut provider = default_provider();
        if let Some(names) = cipher_suites {
            let names: Vec<&str> = names.split(',').map(str::trim).collect();
            provider.cipher_suites.retain(|suite| {
                let own = suite.suite();
                // Go's older names of the ChaCha20 suites lack their hash.
                let named = |own: &str| names.iter().any(|name| *name == own || format!("{name}_SHA256") == own);
                suite.tls13().is_some() || own.as_str().is_some_and(named)
            });
        }
        let versions = if min_version == Some("VersionTLS13") { LATEST } else { ALL };
        Self { provider: Arc::new(provider), versions }
    }

    /// Certificates of clients are asked for and not required; possession of their keys is always verified.
    pub fn server_config(&self, certificate: Arc<CurrentCertificate>) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(self.versions)
            .expect("the suites of TLS 1.3 are always there")
            .with_client_cert_verifier(AnyClientCertificate::verifier())
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self::new(None, None)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn suites(policy: &TlsPolicy) -> Vec<&'static str> {
        let of_tls12 = policy.provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none());
        of_tls12.filter_map(|suite| suite.suite().as_str()).collect()
    }

    #[test]
    fn what_is_asked_of_kube_apiserver_is_asked_of_every_listener() {
        assert_eq!((TlsPolicy::default().versions.len(), suites(&TlsPolicy::default()).len()), (2, 6));
        assert_eq!(TlsPolicy::new(Some("VersionTLS10"), None).versions.len(), 2);
        assert_eq!(TlsPolicy::new(Some("VersionTLS13"), None).versions, [&TLS13]);
        let names = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA";
        assert_eq!(
            suites(&TlsPolicy::new(None, Some(names))),
            ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
        );
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        let certificate = CurrentCertificate::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        TlsPolicy::new(None, Some("")).server_config(Arc::new(certificate));
    }
}
