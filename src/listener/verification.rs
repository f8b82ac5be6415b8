//! When and where clients' certificates are verified: once for a connection, on a thread that serves nobody.

use std::{sync::Arc, time::SystemTime};

use k3s_pki::{ClientCa, ClientIdentity, Rejection};
use rustls::pki_types::CertificateDer;
use tokio::{sync::Semaphore, task::spawn_blocking};

/// Verifications at one time: they are work for the processor alone.
const CONCURRENT: usize = 1;

/// Verifies certificates one after the other. Clones share the order.
#[derive(Debug, Clone)]
pub(crate) struct Verification(Arc<Semaphore>);

impl Verification {
    /// With nobody waiting.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(CONCURRENT)))
    }

    /// Verifies what a client showed in its handshake: its own certificate first.
    ///
    /// # Errors
    ///
    /// Why the certificate means nothing to us.
    pub(crate) async fn verify(
        &self,
        client_ca: &Arc<ClientCa>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ClientIdentity, Rejection> {
        let _turn = self.0.acquire().await.expect("it is never closed");
        let client_ca = client_ca.clone();
        let verified = spawn_blocking(move || client_ca.verify(&chain, SystemTime::now()));
        verified.await.unwrap_or_else(|ended| Err(Rejection::Invalid(ended.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[tokio::test]
    async fn a_certificate_that_means_nothing_is_refused() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        let client_ca = Arc::new(ClientCa::new(certificate.pem().as_bytes()).unwrap());
        let verification = Verification::new();
        let refused = verification.verify(&client_ca, vec![vec![0x30, 0].into()]).await;
        assert!(matches!(refused, Err(Rejection::Invalid(_))), "{refused:?}");
    }
}
