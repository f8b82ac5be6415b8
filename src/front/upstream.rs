//! kube-apiserver, as the front reaches it.

use std::{net::SocketAddr, sync::Arc};

use k3s_pki::{CurrentCertificate, client_config};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::{Resumption, WantsClientCert},
    pki_types::{CertificateDer, pem::PemObject},
};

/// Where kube-apiserver listens, and how it and the front know each other.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Its own listener, on loopback.
    pub address: SocketAddr,
    /// What signs its serving certificate, which must name `address`: `server-ca.crt`.
    pub server_ca: Arc<RootCertStore>,
    /// What it believes `X-Remote-*` headers from: `client-auth-proxy.crt` and its key.
    pub proxy_certificate: Arc<CurrentCertificate>,
}

impl Upstream {
    /// `server_ca` is a PEM bundle, every certificate of which is trusted.
    ///
    /// # Errors
    /// It is no PEM, or holds a certificate that TLS does not take.
    pub fn new(
        address: SocketAddr,
        server_ca: &[u8],
        proxy_certificate: Arc<CurrentCertificate>,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(server_ca) {
            roots.add(certificate.map_err(|error| rustls::Error::General(error.to_string()))?)?;
        }
        Ok(Self { address, server_ca: Arc::new(roots), proxy_certificate })
    }

    pub(super) fn trusted_tls(&self) -> ClientConfig {
        finish(self.tls().with_client_cert_resolver(self.proxy_certificate.clone()))
    }

    pub(super) fn plain_tls(&self) -> ClientConfig {
        finish(self.tls().with_no_client_auth())
    }

    fn tls(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        client_config(self.server_ca.clone())
    }
}

/// A resumed session would keep the certificate that it began with.
fn finish(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::disabled();
    config
}
