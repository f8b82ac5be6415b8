//! Who a client is, by its certificate.
//!
//! The handshake asks for a certificate, takes any, and verifies only that the client holds its key
//! ([`AnyClientCertificate`]). Whether the certificate means anything is decided where an answer can be given in HTTP
//! ([`ClientCa::verify`]): an unknown authority is a 401, not a broken connection, as in k3s.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs::default_provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::certificate::{Certificate, Unreadable, bundle};

/// Certificates in a chain, the client's own included: Kubernetes' clients show one to three.
const CERTIFICATES: usize = 10;
/// All of them together, bytes.
const CHAIN: usize = 32 << 10;
/// Intermediates of one name: the one of now and the one before. Every path through a chain is tried, and with each further name like
/// another's their number doubles.
const NAMESAKES: usize = 2;

/// Requests a client certificate without requiring one; proves possession of its key, and nothing else.
#[derive(Debug)]
pub struct AnyClientCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

/// The authorities that client certificates are checked by, parsed once.
#[derive(Debug)]
pub struct ClientCa {
    verifier: Arc<dyn ClientCertVerifier>,
    /// When the last of them ends: webpki does not ask trust anchors for their validity, Go does.
    end: SystemTime,
}

/// A client whose certificate was verified, as kube-apiserver reads it: the common name is the user, organizations are groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The user's name.
    pub user: String,
    /// The groups in the certificate; `system:authenticated` is for others to add.
    pub groups: BTreeSet<String>,
    /// `X509SHA256=<hex>` of the certificate: the extra `authentication.kubernetes.io/credential-id`.
    pub credential_id: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a client certificate means nothing to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The client sent none.
    #[error("no client certificate")]
    None,
    /// It, or one of its chain, is past its end.
    #[error("the client certificate has expired")]
    Expired,
    /// It, or one of its chain, begins later.
    #[error("the client certificate is not yet valid")]
    NotYetValid,
    /// No authority of ours signed it.
    #[error("the client certificate is signed by an unknown authority")]
    UnknownAuthority,
    /// A serving certificate, for one.
    #[error("the certificate is not for clients")]
    NotForClients,
    /// It has no common name.
    #[error("the client certificate names no user")]
    NoUser,
    /// More than any client of Kubernetes has use for, and too much to look into for a stranger.
    #[error("the client certificate's chain is too long: {CERTIFICATES} certificates of {} KiB are looked into, {NAMESAKES} of one name", CHAIN >> 10)]
    TooLong,
    /// Anything else.
    #[error("the client certificate is invalid: {0}")]
    Invalid(String),
}

impl AnyClientCertificate {
    /// For `ServerConfig::builder().with_client_cert_verifier`.
    pub fn verifier() -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self { algorithms: default_provider().signature_verification_algorithms })
    }
}

impl ClientCertVerifier for AnyClientCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        check_length(end_entity, intermediates)
            .map_err(|too_long| CertificateError::Other(OtherError(Arc::new(too_long))))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCa {
    /// Every certificate of the PEM text (`client-ca.crt`) is trusted, as kube-apiserver does.
    ///
    /// # Errors
    /// It is no PEM, or holds no certificate.
    pub fn new(pem: &[u8]) -> Result<Self, Unreadable> {
        let mut roots = RootCertStore::empty();
        let mut end = UNIX_EPOCH;
        for certificate in bundle(pem)? {
            end = end.max(Certificate::parse(&certificate)?.not_after.into());
            roots.add(certificate).map_err(|error| Unreadable::X509(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
            .build()
            .map_err(|error| Unreadable::X509(error.to_string()))?;
        Ok(Self { verifier, end })
    }

    /// Checks a connection's certificates (the client's first, then its intermediates): once for a connection, with
    /// [`ClientIdentity::check_validity`] for each request on it.
    ///
    /// A stranger's chain can take milliseconds: not on a thread that serves others.
    ///
    /// # Errors
    ///
    /// Why the certificate means nothing to us. One that is too long is not looked into.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<ClientIdentity, Rejection> {
        let (leaf, intermediates) = chain.split_first().ok_or(Rejection::None)?;
        check_length(leaf, intermediates)?;
        check_names(intermediates)?;
        if now > self.end {
            return Err(Rejection::Expired);
        }
        // A clock before 1970 counts as 1970: nothing of ours is valid then.
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        self.verifier.verify_client_cert(leaf, intermediates, now)?;
        let mut identity = ClientIdentity::read(leaf, intermediates)?;
        identity.not_after = identity.not_after.min(self.end);
        Ok(identity)
    }
}

impl ClientIdentity {
    /// Whether the certificate, and those the client sent with it, are valid at that time.
    ///
    /// # Errors
    ///
    /// [`Rejection::NotYetValid`] or [`Rejection::Expired`].
    pub fn check_validity(&self, now: SystemTime) -> Result<(), Rejection> {
        if now < self.not_before {
            Err(Rejection::NotYetValid)
        } else if now > self.not_after {
            Err(Rejection::Expired)
        } else {
            Ok(())
        }
    }

    fn read(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<Self, Rejection> {
        let certificate = parse(leaf)?;
        let (mut not_before, mut not_after) = (certificate.not_before, certificate.not_after);
        for intermediate in intermediates {
            let intermediate = parse(intermediate)?;
            not_before = not_before.max(intermediate.not_before);
            not_after = not_after.min(intermediate.not_after);
        }
        let sha256 = digest::digest(&digest::SHA256, leaf);
        Ok(Self {
            user: certificate.common_name.filter(|name| !name.is_empty()).ok_or(Rejection::NoUser)?,
            groups: certificate.organizations,
            credential_id: format!("X509SHA256={}", HEXLOWER.encode(sha256.as_ref())),
            not_before: not_before.into(),
            not_after: not_after.into(),
        })
    }
}

fn check_length(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Rejection> {
    let bytes = leaf.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
    if intermediates.len() < CERTIFICATES && bytes <= CHAIN { Ok(()) } else { Err(Rejection::TooLong) }
}

fn check_names(intermediates: &[CertificateDer<'_>]) -> Result<(), Rejection> {
    let mut namesakes: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for intermediate in intermediates {
        let subject = parse(intermediate)?.subject;
        let count = namesakes.entry(subject).or_default();
        *count += 1;
        if *count > NAMESAKES {
            return Err(Rejection::TooLong);
        }
    }
    Ok(())
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Rejection> {
    Certificate::parse(certificate).map_err(|why| Rejection::Invalid(why.to_string()))
}

impl From<TlsError> for Rejection {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                Self::Expired
            }
            TlsError::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => Self::NotYetValid,
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Self::UnknownAuthority
            }
            TlsError::InvalidCertificate(
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
            ) => Self::NotForClients,
            other => Self::Invalid(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::{
        ClientConfig, ClientConnection, ProtocolVersion, ServerConfig, ServerConnection, SupportedProtocolVersion,
        client::ResolvesClientCert,
        pki_types::ServerName,
        sign::{CertifiedKey, SingleCertAndKey},
        version::{TLS12, TLS13},
    };

    use super::*;
    use crate::{
        authority::CertificateAuthority,
        key::PrivateKey,
        leaf::{CertificateFiles, Profile},
        san,
    };

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn authority(dir: &tempfile::TempDir, stem: &str) -> CertificateAuthority {
        CertificateAuthority::ensure(CertificateFiles::at(dir.path(), stem), "k3s-client", now()).unwrap()
    }

    fn issue(authority: &CertificateAuthority, profile: &Profile) -> (Vec<CertificateDer<'static>>, PrivateKey) {
        let key = PrivateKey::generate().unwrap();
        let pem = authority.issue(profile, key.public(), now().into()).unwrap();
        (bundle(pem.as_bytes()).unwrap(), key)
    }

    /// A handshake in memory; the server's verdict, and what it knows of the client.
    fn handshake(
        version: &'static SupportedProtocolVersion,
        authority: &CertificateAuthority,
        client: Option<CertifiedKey>,
    ) -> Result<Option<Vec<CertificateDer<'static>>>, TlsError> {
        let provider = Arc::new(default_provider());
        let (chain, key) = issue(authority, &Profile::server("k3s", san::loopback()));
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])?
            .with_client_cert_verifier(AnyClientCertificate::verifier())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key.signer()))));
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(bundle(authority.bundle()).unwrap());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots);
        let client = match client {
            Some(client) => {
                let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(client));
                builder.with_client_cert_resolver(resolver)
            }
            None => builder.with_no_client_auth(),
        };
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap())?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            let mut rest = flight.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut flight = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut flight).unwrap();
            }
            client.read_tls(&mut flight.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        let expected = if version.version == ProtocolVersion::TLSv1_2 {
            ProtocolVersion::TLSv1_2
        } else {
            ProtocolVersion::TLSv1_3
        };
        assert_eq!(server.protocol_version(), Some(expected));
        Ok(server.peer_certificates().map(<[_]>::to_vec))
    }

    #[test]
    fn a_certificate_is_asked_for_but_not_required_and_any_authority_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (authority(&dir, "client-ca"), authority(&dir, "their-ca"));
        for version in [&TLS12, &TLS13] {
            assert_eq!(handshake(version, &ours, None).unwrap(), None);
            let (chain, key) = issue(&theirs, &Profile::client("stranger", None));
            let seen = handshake(version, &ours, Some(CertifiedKey::new(chain.clone(), key.signer()))).unwrap();
            assert_eq!(seen.unwrap(), chain);
        }
    }

    #[test]
    fn the_public_certificate_without_its_key_is_refused_in_the_handshake() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir, "client-ca");
        let (admin, _) = issue(&authority, &Profile::client("system:admin", Some("system:masters")));
        let thief = PrivateKey::generate().unwrap();
        for version in [&TLS12, &TLS13] {
            let error = handshake(version, &authority, Some(CertifiedKey::new(admin.clone(), thief.signer())));
            assert_eq!(error.unwrap_err(), TlsError::InvalidCertificate(CertificateError::BadSignature));
        }
    }

    #[test]
    fn common_name_is_the_user_and_organizations_are_groups() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir, "client-ca");
        let ca = ClientCa::new(authority.bundle()).unwrap();
        let (chain, _) = issue(&authority, &Profile::client("system:node:edge-1", Some("system:nodes")));
        let identity = ca.verify(&chain, now()).unwrap();
        assert_eq!(identity.user, "system:node:edge-1");
        assert!(identity.groups.iter().eq(["system:nodes"]));
        assert_eq!(identity.credential_id.len(), "X509SHA256=".len() + 64);
        let year = Duration::from_secs(366 * 86_400);
        assert_eq!(identity.check_validity(now()), Ok(()));
        assert_eq!(identity.check_validity(now() + year), Err(Rejection::Expired));
        assert_eq!(identity.check_validity(now() - year), Err(Rejection::NotYetValid));
        assert_eq!(ca.verify(&chain, now() + year), Err(Rejection::Expired));
        assert_eq!(ca.verify(&chain, now() - year), Err(Rejection::NotYetValid));
    }

    #[test]
    fn what_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (authority(&dir, "client-ca"), authority(&dir, "their-ca"));
        let ca = ClientCa::new(ours.bundle()).unwrap();
        let verify = |authority, profile| ca.verify(&issue(authority, &profile).0, now());
        assert_eq!(ca.verify(&[], now()), Err(Rejection::None));
        assert_eq!(verify(&theirs, Profile::client("stranger", None)), Err(Rejection::UnknownAuthority));
        assert_eq!(verify(&ours, Profile::server("edge-1", san::loopback())), Err(Rejection::NotForClients));
        assert_eq!(verify(&ours, Profile::client("", None)), Err(Rejection::NoUser));
        let garbage = [CertificateDer::from(vec![0x30, 0])];
        assert!(matches!(ca.verify(&garbage, now()), Err(Rejection::Invalid(_))));
        verify(&ours, Profile::peer("etcd-peer", san::loopback())).unwrap();
    }

    #[test]
    fn nobody_outlives_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir, "client-ca");
        let key = PrivateKey::generate().unwrap();
        let years = |years: u32| now() + years * Duration::from_secs(365 * 86_400);
        let late = authority.issue(&Profile::client("late", None), key.public(), years(10).into()).unwrap();
        let chain = bundle(late.as_bytes()).unwrap();
        let ca = ClientCa::new(authority.bundle()).unwrap();
        let identity = ca.verify(&chain, years(9)).unwrap();
        assert_eq!(identity.check_validity(years(9)), Ok(()));
        assert_eq!(identity.check_validity(years(10)), Err(Rejection::Expired));
        assert_eq!(ca.verify(&chain, years(10)), Err(Rejection::Expired));
    }

    #[test]
    fn a_clients_intermediate_leads_to_our_root() {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let named = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let mut root = named("root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut intermediate = root.clone();
        intermediate.distinguished_name.push(DnType::CommonName, "intermediate");
        let [root_key, intermediate_key, leaf_key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let middle = intermediate.signed_by(&intermediate_key, &Issuer::from_params(&root, &root_key)).unwrap();
        let leaf = named("alice").signed_by(&leaf_key, &Issuer::from_params(&intermediate, &intermediate_key)).unwrap();

        let ca = ClientCa::new(root_pem.as_bytes()).unwrap();
        let identity = ca.verify(&[leaf.der().clone(), middle.der().clone()], now()).unwrap();
        assert_eq!(identity.user, "alice");
        assert_eq!(ca.verify(&[leaf.der().clone()], now()), Err(Rejection::UnknownAuthority));
    }

    #[test]
    fn a_chain_that_nobody_needs_is_not_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (authority(&dir, "client-ca"), authority(&dir, "their-ca"));
        let ca = ClientCa::new(ours.bundle()).unwrap();
        let (jane, key) = issue(&ours, &Profile::client("jane", None));
        let with = |others: usize| {
            let mut names = (0..others).map(|n| issue(&theirs, &Profile::client(&format!("of {n}"), None)).0.remove(0));
            Vec::from_iter(jane.iter().take(1).cloned().chain(&mut names))
        };
        let (long, too_long) = (with(CERTIFICATES - 1), with(CERTIFICATES));
        assert_eq!(ca.verify(&long, now()).unwrap().user, "jane");
        assert_eq!(ca.verify(&too_long, now()), Err(Rejection::TooLong));
        let wide = [jane[0].clone(), CertificateDer::from(vec![0; CHAIN])];
        assert_eq!(ca.verify(&wide, now()), Err(Rejection::TooLong), "it is not even parsed");
        let namesakes = Vec::from_iter(jane.iter().take(1).chain([&long[1]; NAMESAKES + 1]).cloned());
        assert_eq!(ca.verify(&namesakes[..=NAMESAKES], now()).unwrap().user, "jane");
        assert_eq!(ca.verify(&namesakes, now()), Err(Rejection::TooLong));

        let seen = handshake(&TLS13, &ours, Some(CertifiedKey::new(long.clone(), key.signer()))).unwrap();
        assert_eq!(seen.unwrap(), long);
        let refused = handshake(&TLS13, &ours, Some(CertifiedKey::new(too_long, key.signer()))).unwrap_err();
        assert!(matches!(&refused, TlsError::InvalidCertificate(CertificateError::Other(_))), "{refused}");
    }
}
