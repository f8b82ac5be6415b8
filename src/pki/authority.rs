//! Certificate authorities: made once, adopted ever after.

use std::{fs, time::SystemTime};

use aws_lc_rs::{digest, rand};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use tracing::{info, warn};

use crate::{
    certificate::{Certificate, Unreadable, bundle},
    error::Error,
    files::{self, PRIVATE, failed},
    key::{PrivateKey, PublicKey},
    leaf::{CertificateFiles, Lifetime, Profile},
    pem,
    tbs::{Role, Tbs, name},
};

/// How long an authority lasts, as in k3s.
const LIFETIME: Duration = Duration::days(3650);

/// An authority begins this much before it is made, so that nodes whose clocks are a little behind accept it.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// With less left, each start warns: changing an authority takes planning.
const WARN_BEFORE: Duration = Duration::days(365);

/// 2026-01-01: a clock behind it was never set.
const CLOCK_FLOOR: i64 = 1_767_225_600;

/// An authority with its key: signs what this server issues.
///
/// The certificate file may be a chain whose first certificate signs (an intermediate of the user's, then the rest up to
/// the root); the whole chain follows each issued certificate.
#[derive(Debug)]
pub struct CertificateAuthority {
    files: CertificateFiles,
    /// The file as it is: what `/cacerts` serves and tokens pin.
    bundle: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
    certificate: Certificate,
    key: PrivateKey,
    /// How long what it signs lasts.
    lifetime: Lifetime,
}

impl CertificateAuthority {
    /// Adopts the authority in these files; makes one named `<prefix>-ca@<unix time>` if both are missing.
    ///
    /// A key alone gets a certificate, as in k3s: that is where a power cut leaves a first start. Anything else that is not
    /// a usable authority is an error, and stays as it is.
    ///
    /// # Errors
    /// The files cannot be read or written, or are no authority.
    pub fn ensure(files: CertificateFiles, prefix: &str, now: SystemTime) -> Result<Self, Error> {
        if !files.certificate.try_exists().map_err(failed("read", &files.certificate))? {
            Self::create(&files, prefix, now.into())?;
        }
        let authority = Self::load(files)?;
        authority.check_validity(now.into())?;
        Ok(authority)
    }

    /// Adopts the authority in these files, whatever its validity.
    ///
    /// # Errors
    /// The files are missing, cannot be read, or are no authority.
    pub fn load(files: CertificateFiles) -> Result<Self, Error> {
        let not_an_authority = |why| Error::NotAnAuthority { path: files.certificate.clone(), why };
        let text = fs::read(&files.certificate).map_err(failed("read", &files.certificate))?;
        let chain = bundle(&text).map_err(not_an_authority)?;
        let certificate = Certificate::parse(&chain[0]).map_err(not_an_authority)?;
        if !certificate.is_authority {
            return Err(not_an_authority(Unreadable::NotAnAuthority));
        }
        let key = PrivateKey::load(&files.key)?
            .ok_or_else(|| Error::KeyMissing { certificate: files.certificate.clone(), key: files.key.clone() })?;
        if *key.public() != certificate.public_key {
            return Err(Error::KeyMismatch { certificate: files.certificate, key: files.key });
        }
        Ok(Self { files, bundle: text, chain, certificate, key, lifetime: Lifetime::default() })
    }

    /// The same, with this lifetime of what it signs.
    pub fn with_lifetime(self, lifetime: Lifetime) -> Self {
        Self { lifetime, ..self }
    }

    /// How long what it signs lasts.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Signs a certificate of this profile, valid from the authority's own beginning until a lifetime from now; PEM, the
    /// authority's chain included.
    ///
    /// Beginning with the authority, it is valid even for those whose clock is behind.
    ///
    /// # Errors
    /// The authority's key cannot sign, or the profile holds what no certificate can.
    pub fn issue(&self, profile: &Profile, key: &PublicKey, now: OffsetDateTime) -> Result<String, Error> {
        let leaf = Tbs {
            serial: random_serial()?,
            issuer: &self.certificate.subject,
            subject: &name(&profile.common_name, profile.organization.as_deref()),
            not_before: self.certificate.not_before,
            not_after: whole_seconds(now.max(self.certificate.not_before) + self.lifetime.duration()),
            public_key: key,
            role: Role::Leaf {
                usage: profile.usage,
                sans: &profile.sans,
                authority_key_id: self.certificate.subject_key_id.as_deref(),
            },
        };
        let leaf = leaf.sign(&self.key).ok_or(Error::Crypto("sign a certificate"))?;
        Ok(pem::encode_certificates([&leaf].into_iter().chain(&self.chain)))
    }

    /// Where the authority lies.
    pub fn files(&self) -> &CertificateFiles {
        &self.files
    }

    /// The certificate file byte by byte.
    pub fn bundle(&self) -> &[u8] {
        &self.bundle
    }

    /// The certificate that signs.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The certificate that signs, and the rest of its chain.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificate that signs without the rest of its chain, as PEM: kube-controller-manager's signer wants it so.
    pub fn signing_certificate(&self) -> String {
        pem::encode_certificates(&self.chain[..1])
    }

    fn create(files: &CertificateFiles, prefix: &str, now: OffsetDateTime) -> Result<(), Error> {
        if now.unix_timestamp() < CLOCK_FLOOR {
            return Err(Error::ClockUnset { now });
        }
        let key = match PrivateKey::load(&files.key)? {
            Some(key) => key,
            None => {
                let key = PrivateKey::generate()?;
                files::write(&files.key, key.pem().as_bytes(), PRIVATE)?;
                key
            }
        };
        let subject = name(&format!("{prefix}-ca@{}", now.unix_timestamp()), None);
        let not_before = whole_seconds(now - CLOCK_SKEW);
        let digest = digest::digest(&digest::SHA256, key.public().spki());
        let authority = Tbs {
            serial: 0,
            issuer: &subject,
            subject: &subject,
            not_before,
            not_after: not_before + LIFETIME,
            public_key: key.public(),
            // RFC 7093: 160 bits of a SHA-256.
            role: Role::Authority { key_id: &digest.as_ref()[..20] },
        };
        let certificate = authority.sign(&key).ok_or(Error::Crypto("sign a certificate"))?;
        files::write(&files.certificate, pem::encode_certificates([&certificate]).as_bytes(), PRIVATE)?;
        info!(certificate = %files.certificate.display(), "Made a certificate authority.");
        Ok(())
    }

    fn check_validity(&self, now: OffsetDateTime) -> Result<(), Error> {
        let Certificate { not_before, not_after, .. } = self.certificate;
        let path = &self.files.certificate;
        if now > not_after {
            return Err(Error::AuthorityExpired { path: path.clone(), not_after, now });
        }
        if now < not_before {
            return Err(Error::AuthorityNotYetValid { path: path.clone(), not_before, now });
        }
        if not_after - now < WARN_BEFORE {
            warn!(certificate = %path.display(), ends = %not_after.date(), "A certificate authority ends within a year.");
        }
        Ok(())
    }
}

/// If only the older `token-ca` of k3s' first releases is there, it becomes the server authority by hard links, as in k3s.
pub(crate) fn adopt_legacy(legacy: &CertificateFiles, files: &CertificateFiles) -> Result<(), Error> {
    let exists = |files: &CertificateFiles| [files.certificate.exists(), files.key.exists()];
    if exists(legacy) == [true, true] && exists(files) == [false, false] {
        fs::hard_link(&legacy.key, &files.key).map_err(failed("link", &files.key))?;
        fs::hard_link(&legacy.certificate, &files.certificate).map_err(failed("link", &files.certificate))?;
    }
    Ok(())
}

fn random_serial() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).map_err(|_| Error::Crypto("draw a serial number"))?;
    // 63 bits, as in k3s: DER integers are signed. Zero is the authorities'.
    Ok((u64::from_be_bytes(bytes) >> 1).max(1))
}

/// Certificates know no fractions of a second.
fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).expect("zero is in range")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000)
    }

    fn files(dir: &tempfile::TempDir) -> CertificateFiles {
        CertificateFiles::at(dir.path(), "server-ca")
    }

    fn ensure(dir: &tempfile::TempDir) -> Result<CertificateAuthority, Error> {
        CertificateAuthority::ensure(files(dir), "k3s-server", now())
    }

    /// The error's sentence, after which neither file has changed.
    fn refused(dir: &tempfile::TempDir) -> String {
        let contents = || [files::read(&files(dir).certificate).unwrap(), files::read(&files(dir).key).unwrap()];
        let before = contents();
        let error = ensure(dir).unwrap_err();
        assert_eq!(contents(), before, "nothing was overwritten");
        error.to_string()
    }

    fn their_authority(name: &[(DnType, &str)]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in name {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params
    }

    #[test]
    fn a_new_authority_looks_like_k3s_own() {
        let dir = tempfile::tempdir().unwrap();
        let authority = ensure(&dir).unwrap();
        let (_, x509) = x509_parser::parse_x509_certificate(&authority.chain[0]).unwrap();
        assert_eq!(x509.subject().to_string(), "CN=k3s-server-ca@1800000000");
        assert_eq!(x509.raw_serial(), [0]);
        assert!(x509.is_ca());
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert!(usage.value.digital_signature() && usage.value.key_encipherment() && usage.value.key_cert_sign());
        assert_eq!(usage.value.flags.count_ones(), 3);
        let validity = x509.validity();
        assert_eq!(validity.not_before.timestamp(), 1_800_000_000 - 3600);
        assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 3650 * 86_400);
        assert!(authority.certificate.subject_key_id.is_some());
        assert_eq!(authority.certificate.authority_key_id, None);
        x509.verify_signature(None).unwrap();
    }

    #[test]
    fn issued_certificates_look_like_k3s_own() {
        let dir = tempfile::tempdir().unwrap();
        let authority = ensure(&dir).unwrap();
        let key = PrivateKey::generate().unwrap();
        let profile = Profile::client("system:apiserver", Some("system:masters"));
        let pem = authority.issue(&profile, key.public(), now().into()).unwrap();
        let chain = pem::certificates(pem.as_bytes()).unwrap();
        assert_eq!(chain[1..], authority.chain);
        let (_, x509) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert_eq!(x509.subject().to_string(), "O=system:masters, CN=system:apiserver");
        assert_eq!(x509.issuer().to_string(), "CN=k3s-server-ca@1800000000");
        assert_eq!(x509.validity().not_before.timestamp(), 1_800_000_000 - 3600);
        assert_eq!(x509.validity().not_after.timestamp(), 1_800_000_000 + 365 * 86_400);
        let usage = x509.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert!(x509.subject_alternative_name().unwrap().is_none());
        assert!(!x509.is_ca());
        let found = Certificate::parse(&chain[0]).unwrap();
        assert_eq!(found.authority_key_id, authority.certificate.subject_key_id);
        let (_, ca) = x509_parser::parse_x509_certificate(&authority.chain[0]).unwrap();
        x509.verify_signature(Some(ca.public_key())).unwrap();
    }

    #[test]
    fn it_is_adopted_untouched_the_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(&dir).unwrap();
        let second = ensure(&dir).unwrap();
        assert_eq!(first.bundle, second.bundle);
    }

    #[test]
    fn a_key_alone_is_where_a_power_cut_left_the_first_start() {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::load_or_generate(&files(&dir).key).unwrap();
        assert_eq!(ensure(&dir).unwrap().certificate.public_key, *key.public());
    }

    #[test]
    fn an_intermediate_of_the_users_signs_with_its_whole_chain_and_its_very_name() {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap());
        let root = their_authority(&[(DnType::CommonName, "root")]);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let domain_component = DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 25]);
        let name =
            [(domain_component, "com"), (DnType::OrganizationName, "Exämple"), (DnType::CommonName, "k3s servers")];
        let certificate = their_authority(&name).signed_by(&key, &Issuer::from_params(&root, &root_key)).unwrap();
        let chain = certificate.pem() + &root_pem;

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(files(&dir).certificate, &chain).unwrap();
        std::fs::write(files(&dir).key, key.serialize_pem()).unwrap();
        let authority = ensure(&dir).unwrap();
        assert_eq!(authority.bundle(), chain.as_bytes());
        assert_eq!(authority.signing_certificate(), certificate.pem().replace("\r\n", "\n"));

        let leaf = PrivateKey::generate().unwrap();
        let profile = Profile::server("kube-apiserver", crate::san::loopback());
        let pem = authority.issue(&profile, leaf.public(), now().into()).unwrap();
        assert!(pem.ends_with(&chain));
        let leaf = Certificate::first_of(pem.as_bytes()).unwrap();
        assert_eq!(leaf.issuer, authority.certificate().subject);
        let chain = bundle(pem.as_bytes()).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let (_, authority) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
        leaf.verify_signature(Some(authority.public_key())).unwrap();
    }

    #[test]
    fn a_foreign_file_is_refused_and_named() {
        for (contents, why) in [
            ("my shopping list\n", "it holds no certificate"),
            ("", "it is empty"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be parsed"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            ensure(&dir).unwrap();
            std::fs::write(files(&dir).certificate, contents).unwrap();
            let sentence = refused(&dir);
            assert!(
                sentence.contains("server-ca.crt is not a certificate authority") && sentence.contains(why),
                "{sentence}"
            );
        }
    }

    #[test]
    fn a_leaf_certificate_is_no_authority() {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        std::fs::write(files(&dir).certificate, CertificateParams::default().self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(files(&dir).key, key.serialize_pem()).unwrap();
        assert!(refused(&dir).contains("may not sign others"));
    }

    #[test]
    fn a_lost_foreign_or_wrong_key_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        ensure(&dir).unwrap();
        std::fs::write(files(&dir).key, PrivateKey::generate().unwrap().pem()).unwrap();
        assert!(refused(&dir).contains("server-ca.crt does not belong to the key"));
        std::fs::write(files(&dir).key, "").unwrap();
        assert!(refused(&dir).contains("server-ca.key is not an unencrypted private key"));
        std::fs::remove_file(files(&dir).key).unwrap();
        assert!(refused(&dir).contains("server-ca.key is not: restore the key"));
        std::fs::write(files(&dir).key, "my shopping list").unwrap();
        std::fs::remove_file(files(&dir).certificate).unwrap();
        assert!(refused(&dir).contains("server-ca.key is not an unencrypted private key"));
    }

    #[test]
    fn the_clock_must_lie_within_the_authoritys_life() {
        let dir = tempfile::tempdir().unwrap();
        let at = |days: i64| {
            let now = OffsetDateTime::from(now()) + Duration::days(days);
            CertificateAuthority::ensure(files(&dir), "k3s-server", now.into()).map(|_| ()).map_err(|e| e.to_string())
        };
        assert!(at(-20_000).unwrap_err().contains("was never set"));
        assert!(!Path::new(&files(&dir).key).exists(), "an unset clock makes nothing");
        at(0).unwrap();
        at(3649).unwrap();
        assert!(at(3651).unwrap_err().contains("server-ca.crt expired on 2037-01-"));
        assert!(at(-1).unwrap_err().contains("is valid from"));
    }

    #[test]
    fn the_first_releases_token_ca_becomes_the_server_ca() {
        let dir = tempfile::tempdir().unwrap();
        let legacy = CertificateFiles::at(dir.path(), "token-ca");
        let made = CertificateAuthority::ensure(legacy.clone(), "k3s-token", now()).unwrap();
        adopt_legacy(&legacy, &files(&dir)).unwrap();
        assert_eq!(ensure(&dir).unwrap().bundle, made.bundle);
    }
}
