//! The client at the other end of a connection, and who it is.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use k3s_pki::{ClientIdentity, Rejection};

use crate::connections::Place;

/// A client, for as long as its connection stands.
#[derive(Debug)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    certificate: Result<ClientIdentity, Rejection>,
    place: Arc<Place>,
}

impl Peer {
    /// A client whose certificate was verified when it connected.
    pub fn new(address: SocketAddr, certificate: Result<ClientIdentity, Rejection>, place: Arc<Place>) -> Self {
        if certificate.is_ok() {
            place.authenticate();
        }
        Self { address, certificate, place }
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

    /// A password or a token of the client's was accepted: it is no stranger any more.
    pub fn authenticate(&self) {
        self.place.authenticate();
    }

    /// Whether the client has shown credentials on this connection.
    pub fn is_authenticated(&self) -> bool {
        self.place.is_authenticated()
    }

    /// Returns when the client has shown credentials.
    pub async fn authenticated(&self) {
        self.place.authenticated().await;
    }

    /// Returns when another stranger needs the place.
    pub(crate) async fn displaced(&self) {
        self.place.displaced().await;
    }
}
