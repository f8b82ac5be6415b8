//! The client at the other end of a connection, and who it is by its certificate.

use std::{net::SocketAddr, sync::OnceLock, time::SystemTime};

use http::HeaderMap;
use k3s_pki::{ClientCa, ClientIdentity, Rejection};
use rustls::pki_types::CertificateDer;

use super::headers::has_bearer_token;

/// A client, for as long as its connection stands.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    chain: Vec<CertificateDer<'static>>,
    verified: OnceLock<ClientIdentity>,
}

/// On whose word a request goes to kube-apiserver.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Caller<'a> {
    /// We verified the client's certificate and vouch for it.
    Vouched(&'a ClientIdentity),
    /// On the request's own word: a token, or nothing.
    Own,
}

impl Peer {
    /// A client that proved in the handshake to hold the key of `chain`'s first certificate, if it sent any.
    pub(crate) fn new(address: SocketAddr, chain: Vec<CertificateDer<'static>>) -> Self {
        Self { address, chain, verified: OnceLock::new() }
    }

    /// Who makes the request with these headers, now: certificates end while connections stand.
    ///
    /// As in kube-apiserver's own chain of authenticators: a certificate that verifies goes before a token; one that does
    /// not leaves the word to the token, and without a token the request is refused; one that names no user counts as none.
    pub(super) fn caller(
        &self,
        headers: &HeaderMap,
        client_ca: &ClientCa,
        now: SystemTime,
    ) -> Result<Caller<'_>, Rejection> {
        match self.identity(client_ca, now) {
            Ok(identity) => Ok(Caller::Vouched(identity)),
            Err(Rejection::None | Rejection::NoUser) => Ok(Caller::Own),
            Err(_) if has_bearer_token(headers) => Ok(Caller::Own),
            Err(rejection) => Err(rejection),
        }
    }

    /// Who the client is by its certificate, now: verified once for a connection, its validity each time.
    pub(crate) fn identity(&self, client_ca: &ClientCa, now: SystemTime) -> Result<&ClientIdentity, Rejection> {
        if let Some(identity) = self.verified.get().filter(|identity| identity.is_valid_at(now)) {
            return Ok(identity);
        }
        let identity = client_ca.verify(&self.chain, now)?;
        Ok(self.verified.get_or_init(|| identity))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderValue, header::AUTHORIZATION};

    use super::*;
    use crate::front::testing::{Ca, Leaf};

    const DAY: Duration = Duration::from_secs(86_400);

    fn peer(certificate: Option<&Leaf>) -> Peer {
        let address = "192.0.2.1:1".parse().unwrap();
        Peer::new(address, certificate.map(|leaf| vec![leaf.der()]).unwrap_or_default())
    }

    fn token() -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer abc"))])
    }

    #[test]
    fn a_certificate_of_ours_names_the_caller_before_any_token() {
        let ca = Ca::new("client-ca");
        let peer = peer(Some(&ca.client("jane", Some("dev"))));
        for headers in [HeaderMap::new(), token()] {
            let Caller::Vouched(identity) = peer.caller(&headers, &ca.client_ca(), SystemTime::now()).unwrap() else {
                panic!("vouched for");
            };
            assert_eq!(identity.user, "jane");
            assert_eq!(Vec::from_iter(&identity.groups), ["dev"]);
        }
    }

    #[test]
    fn a_certificate_that_ends_while_its_connection_stands_is_refused_from_then_on() {
        let ca = Ca::new("client-ca");
        let (client_ca, peer) = (ca.client_ca(), peer(Some(&ca.client("jane", None))));
        let (now, headers) = (SystemTime::now(), HeaderMap::new());
        assert!(peer.caller(&headers, &client_ca, now).is_ok());
        assert_eq!(peer.caller(&headers, &client_ca, now + 400 * DAY), Err(Rejection::Expired));
        assert_eq!(peer.caller(&headers, &client_ca, now - 400 * DAY), Err(Rejection::NotYetValid));
        assert!(peer.caller(&headers, &client_ca, now).is_ok(), "the clock was set right again");
    }

    #[test]
    fn a_foreign_certificate_leaves_the_word_to_a_token() {
        let (ca, foreign) = (Ca::new("client-ca"), Ca::new("client-ca"));
        let peer = peer(Some(&foreign.client("system:admin", Some("system:masters"))));
        let now = SystemTime::now();
        assert_eq!(peer.caller(&HeaderMap::new(), &ca.client_ca(), now), Err(Rejection::UnknownAuthority));
        assert_eq!(peer.caller(&token(), &ca.client_ca(), now), Ok(Caller::Own));
    }

    #[test]
    fn without_a_certificate_that_names_somebody_the_request_speaks_for_itself() {
        let ca = Ca::new("client-ca");
        for peer in [peer(None), peer(Some(&ca.client("", Some("system:masters"))))] {
            assert_eq!(peer.caller(&HeaderMap::new(), &ca.client_ca(), SystemTime::now()), Ok(Caller::Own));
        }
    }
}
