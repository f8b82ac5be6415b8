//! Private keys in the three forms that PEM files hold, and the public halves.

use std::{fmt, path::Path, sync::Arc};

use aws_lc_rs::{
    encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der},
    rsa,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rustls::{
    SignatureScheme,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        AlgorithmIdentifier, PrivateKeyDer, PrivatePkcs1KeyDer, PrivateSec1KeyDer, alg_id,
        pem::{PemObject, SectionKind},
    },
    sign::SigningKey,
};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use crate::{
    error::Error,
    files::{self, PRIVATE},
    pem,
};

/// A private key: ECDSA P-256 where we make it (RSA 2048 for service accounts), any kind that rustls signs with where users bring it.
pub struct PrivateKey {
    der: PrivateKeyDer<'static>,
    signer: Arc<dyn SigningKey>,
    public: PublicKey,
}

/// A public key as DER-encoded SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

/// Why a certificate signing request gives no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is something else.
    #[error("it is not a DER-encoded PKCS #10 certificate signing request")]
    Unreadable,
    /// Its sender may not hold the key.
    #[error(
        "the signature of the certificate signing request does not match the public key in it, or is of a kind that is not known here"
    )]
    Unproven,
}

impl PrivateKey {
    /// A new ECDSA P-256 key, written as `EC PRIVATE KEY` (SEC 1).
    ///
    /// # Errors
    /// The cryptographic library has no randomness.
    pub fn generate() -> Result<Self, Error> {
        let failed = |_| Error::Crypto("make an ECDSA key");
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let der: EcPrivateKeyRfc5915Der<'_> = key.private_key().as_der().map_err(failed)?;
        Self::from_der(PrivateSec1KeyDer::from(der.as_ref().to_vec()).into()).ok_or(Error::Crypto("make an ECDSA key"))
    }

    /// A new RSA key of 2048 bits, written as `RSA PRIVATE KEY` (PKCS #1): what service-account tokens are signed with.
    ///
    /// # Errors
    /// The cryptographic library has no randomness.
    pub fn generate_rsa() -> Result<Self, Error> {
        const ACTION: &str = "make an RSA key";
        let key = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).map_err(|_| Error::Crypto(ACTION))?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(|_| Error::Crypto(ACTION))?;
        // PrivateKeyInfo is { version, algorithm, OCTET STRING holding the PKCS #1 key }.
        let pkcs1 = yasna::parse_der(pkcs8.as_ref(), |reader| {
            reader.read_sequence(|fields| {
                fields.next().read_u8()?;
                fields.next().read_der()?;
                fields.next().read_bytes()
            })
        })
        .map_err(|_| Error::Crypto(ACTION))?;
        Self::from_der(PrivatePkcs1KeyDer::from(pkcs1).into()).ok_or(Error::Crypto(ACTION))
    }

    /// The first private key of a PEM text; `None` if there is none that can be used.
    pub fn from_pem(pem: &[u8]) -> Option<Self> {
        Self::from_der(PrivateKeyDer::from_pem_slice(pem).ok()?)
    }

    /// The key in a section of a PEM text; `None` if it holds none that can be used.
    pub(crate) fn from_section(kind: SectionKind, der: Vec<u8>) -> Option<Self> {
        Self::from_der(PrivateKeyDer::from_pem(kind, der)?)
    }

    /// The first key of a file; `None` if there is no file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key that is known.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let Some(contents) = files::read(path)? else { return Ok(None) };
        Self::from_pem(&contents).map(Some).ok_or_else(|| Error::NotAKey { path: path.to_owned() })
    }

    /// The key of a file, made and written there if the file is missing or was torn by a power cut.
    ///
    /// Only for keys whose certificate we can issue again.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds no key that is known.
    pub fn load_or_generate(path: &Path) -> Result<Self, Error> {
        match files::read(path)? {
            Some(contents) if !files::is_torn(&contents) => {
                Self::from_pem(&contents).ok_or_else(|| Error::NotAKey { path: path.to_owned() })
            }
            _ => {
                let key = Self::generate()?;
                files::write(path, key.pem().as_bytes(), PRIVATE)?;
                Ok(key)
            }
        }
    }

    /// The key as PEM, in the form it came in.
    pub fn pem(&self) -> String {
        let label = match self.der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem::encode(label, self.der.secret_der())
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What rustls signs handshakes with.
    pub fn signer(&self) -> Arc<dyn SigningKey> {
        self.signer.clone()
    }

    /// How this key signs certificates: the scheme for [`Self::sign`], and its name in X.509.
    pub(crate) fn certificate_scheme(&self) -> Option<(SignatureScheme, AlgorithmIdentifier)> {
        const SCHEMES: [(SignatureScheme, AlgorithmIdentifier); 5] = [
            (SignatureScheme::ECDSA_NISTP256_SHA256, alg_id::ECDSA_SHA256),
            (SignatureScheme::ECDSA_NISTP384_SHA384, alg_id::ECDSA_SHA384),
            (SignatureScheme::ECDSA_NISTP521_SHA512, alg_id::ECDSA_SHA512),
            (SignatureScheme::RSA_PKCS1_SHA256, alg_id::RSA_PKCS1_SHA256),
            (SignatureScheme::ED25519, alg_id::ED25519),
        ];
        SCHEMES.into_iter().find(|(scheme, _)| self.signer.choose_scheme(&[*scheme]).is_some())
    }

    pub(crate) fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Option<Vec<u8>> {
        self.signer.choose_scheme(&[scheme])?.sign(message).ok()
    }

    fn from_der(der: PrivateKeyDer<'static>) -> Option<Self> {
        let signer = any_supported_type(&der).ok()?;
        let public = PublicKey(signer.public_key()?.as_ref().to_vec());
        Some(Self { der, signer, public })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// A DER-encoded SubjectPublicKeyInfo, as a certificate holds it.
    pub(crate) fn from_spki(der: &[u8]) -> Self {
        Self(der.to_vec())
    }

    /// The key of a DER-encoded PKCS #10 request whose signature proves that the sender holds it; its subject means nothing.
    ///
    /// # Errors
    /// [`RequestError::Unreadable`] if it is no request, [`RequestError::Unproven`] if the signature is not the key's.
    pub fn from_request(der: &[u8]) -> Result<Self, RequestError> {
        match X509CertificationRequest::from_der(der) {
            Ok((b"", request)) => {
                request.verify_signature().map_err(|_| RequestError::Unproven)?;
                Ok(Self::from_spki(request.certification_request_info.subject_pki.raw))
            }
            _ => Err(RequestError::Unreadable),
        }
    }

    /// The SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn keys_are_written_in_the_forms_k3s_writes() {
        let ec = PrivateKey::generate().unwrap();
        let rsa = PrivateKey::generate_rsa().unwrap();
        assert!(ec.pem().starts_with("-----BEGIN EC PRIVATE KEY-----\n"));
        assert!(rsa.pem().starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
        for key in [ec, rsa] {
            let again = PrivateKey::from_pem(key.pem().as_bytes()).unwrap();
            assert_eq!(again.public(), key.public());
            assert_eq!(again.pem(), key.pem());
        }
    }

    #[test]
    fn keys_that_users_bring_are_read() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ECDSA_P521_SHA512,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let theirs = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let pem = theirs.serialize_pem();
            assert!(pem.contains("BEGIN PRIVATE KEY"), "PKCS #8");
            let ours = PrivateKey::from_pem(pem.as_bytes()).unwrap();
            assert_eq!(ours.public().spki(), rcgen::PublicKeyData::subject_public_key_info(&theirs));
            let (scheme, _) = ours.certificate_scheme().unwrap();
            assert!(ours.sign(scheme, b"message").is_some());
        }
    }

    #[test]
    fn a_torn_key_is_made_again_but_a_foreign_file_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client-admin.key");
        std::fs::write(&path, [0; 227]).unwrap();
        let key = PrivateKey::load_or_generate(&path).unwrap();
        assert_eq!(PrivateKey::load_or_generate(&path).unwrap().public(), key.public());
        std::fs::write(&path, "my shopping list").unwrap();
        let error = PrivateKey::load_or_generate(&path).unwrap_err();
        assert!(error.to_string().contains("client-admin.key is not an unencrypted private key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"my shopping list");
    }

    #[test]
    fn a_request_gives_its_key_only_to_who_holds_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let public = PublicKey::from_request(request.der()).unwrap();
        assert_eq!(public.spki(), rcgen::PublicKeyData::subject_public_key_info(&key));
        let mut forged = request.der().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(PublicKey::from_request(&forged), Err(RequestError::Unproven));
        let followed = [request.der().as_ref(), b"\0"].concat();
        for bad in [&followed[..], b"", b"-----BEGIN CERTIFICATE REQUEST-----"] {
            assert_eq!(PublicKey::from_request(bad), Err(RequestError::Unreadable));
        }
    }

    #[test]
    fn openssl_reads_them() {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("openssl is not installed: skipped");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (name, key) in [("ec", PrivateKey::generate().unwrap()), ("rsa", PrivateKey::generate_rsa().unwrap())] {
            let path = dir.path().join(name);
            std::fs::write(&path, key.pem()).unwrap();
            let checked =
                Command::new("openssl").arg(name).args(["-check", "-noout", "-in"]).arg(&path).output().unwrap();
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}
