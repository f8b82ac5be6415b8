//! The client at the other end of a connection, and who it is by its certificate.

use std::{net::SocketAddr, time::SystemTime};

use k3s_pki::{ClientIdentity, Rejection};

/// A client, for as long as its connection stands.
#[derive(Debug)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    certificate: Result<ClientIdentity, Rejection>,
}

impl Peer {
    /// A client whose certificate was [verified](crate::Verification::verify) when it connected.
    pub fn new(address: SocketAddr, certificate: Result<ClientIdentity, Rejection>) -> Self {
        Self { address, certificate }
    }

    /// Who the client is by its certificate, now: certificates end while connections stand.
    ///
    /// # Errors
    ///
    /// What was found when the client connected, or that the certificate is not valid at this time.
    pub fn identity(&self, now: SystemTime) -> Result<&ClientIdentity, Rejection> {
        let identity = self.certificate.as_ref().map_err(Clone::clone)?;
        identity.check_validity(now)?;
        Ok(identity)
    }
}
