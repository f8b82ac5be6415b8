//! On whose word a client's request goes to kube-apiserver.

use std::time::SystemTime;

use http::HeaderMap;
use k3s_listener::Peer;
use k3s_pki::{ClientIdentity, Rejection};

use super::headers::has_bearer_token;

/// On whose word a request goes to kube-apiserver.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Authentication<'a> {
    /// We verified the client's certificate and vouch for it.
    RequestHeader(&'a ClientIdentity),
    /// On the request's own word: a token, or nothing.
    Passthrough,
}

impl<'a> Authentication<'a> {
    /// Who makes the request of `peer` with these headers, now.
    ///
    /// As in kube-apiserver's own chain of authenticators: a certificate that verifies goes before a token; one that does
    /// not leaves the word to the token, and without a token the request is refused; one that names no user counts as none.
    pub(super) fn of(peer: &'a Peer, headers: &HeaderMap, now: SystemTime) -> Result<Self, Rejection> {
        match peer.identity(now) {
            Ok(identity) => Ok(Self::RequestHeader(identity)),
            Err(Rejection::None | Rejection::NoUser) => Ok(Self::Passthrough),
            Err(_) if has_bearer_token(headers) => Ok(Self::Passthrough),
            Err(rejection) => Err(rejection),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use http::{HeaderValue, header::AUTHORIZATION};
    use k3s_listener::{Connections, Limits};

    use super::*;
    use crate::testing::{Ca, Leaf};

    const DAY: Duration = Duration::from_secs(86_400);

    fn peer(ca: &Ca, certificate: Option<&Leaf>) -> Peer {
        let chain = certificate.map(|leaf| vec![leaf.der()]).unwrap_or_default();
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let place = Connections::new(Limits::of_process()).enter(address.ip());
        Peer::new(address, ca.client_ca().verify(&chain, SystemTime::now()), Arc::new(place))
    }

    fn token() -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer abc"))])
    }

    #[test]
    fn a_certificate_of_ours_names_the_caller_before_any_token() {
        let ca = Ca::new("client-ca");
        let peer = peer(&ca, Some(&ca.client("jane", Some("dev"))));
        for headers in [HeaderMap::new(), token()] {
            let Authentication::RequestHeader(identity) =
                Authentication::of(&peer, &headers, SystemTime::now()).unwrap()
            else {
                panic!("vouched for");
            };
            assert_eq!(identity.user, "jane");
            assert_eq!(Vec::from_iter(&identity.groups), ["dev"]);
        }
    }

    #[test]
    fn a_certificate_that_ends_while_its_connection_stands_is_refused_from_then_on() {
        let ca = Ca::new("client-ca");
        let peer = peer(&ca, Some(&ca.client("jane", None)));
        let (now, headers) = (SystemTime::now(), HeaderMap::new());
        assert!(Authentication::of(&peer, &headers, now).is_ok());
        assert_eq!(Authentication::of(&peer, &headers, now + 400 * DAY), Err(Rejection::Expired));
        assert_eq!(Authentication::of(&peer, &headers, now - 400 * DAY), Err(Rejection::NotYetValid));
        assert!(Authentication::of(&peer, &headers, now).is_ok(), "the clock was set right again");
    }

    #[test]
    fn a_foreign_certificate_leaves_the_word_to_a_token() {
        let (ca, foreign) = (Ca::new("client-ca"), Ca::new("client-ca"));
        let peer = peer(&ca, Some(&foreign.client("system:admin", Some("system:masters"))));
        let now = SystemTime::now();
        assert_eq!(Authentication::of(&peer, &HeaderMap::new(), now), Err(Rejection::UnknownAuthority));
        assert_eq!(Authentication::of(&peer, &token(), now), Ok(Authentication::Passthrough));
    }

    #[test]
    fn without_a_certificate_that_names_somebody_the_request_speaks_for_itself() {
        let ca = Ca::new("client-ca");
        for peer in [peer(&ca, None), peer(&ca, Some(&ca.client("", Some("system:masters"))))] {
            assert_eq!(
                Authentication::of(&peer, &HeaderMap::new(), SystemTime::now()),
                Ok(Authentication::Passthrough)
            );
        }
    }
}
