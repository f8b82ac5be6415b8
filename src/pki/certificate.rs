//! A certificate as far as we look into it.

use std::collections::BTreeSet;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::X509Name,
};

use crate::{files, key::PublicKey, pem, san::San};

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The last common name of the subject, as Go picks it.
    pub common_name: Option<String>,
    /// All organizations of the subject.
    pub organizations: BTreeSet<String>,
    /// Host names and addresses; other kinds of names and malformed ones are left out.
    pub sans: BTreeSet<San>,
    /// The first second it is valid.
    pub not_before: OffsetDateTime,
    /// The last.
    pub not_after: OffsetDateTime,
    /// The key that it is for.
    pub public_key: PublicKey,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// The subject, DER-encoded.
    pub subject: Vec<u8>,
    /// Its authority's subject, DER-encoded.
    pub issuer: Vec<u8>,
    /// The identifier of its key.
    pub subject_key_id: Option<Vec<u8>>,
    /// The identifier of its authority's key.
    pub authority_key_id: Option<Vec<u8>>,
}

/// Why a text is not the certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A power cut took the contents, or somebody did.
    #[error("it is empty")]
    Empty,
    /// Broken PEM.
    #[error("its PEM encoding is broken")]
    Pem,
    /// No section says CERTIFICATE.
    #[error("it holds no certificate")]
    NoCertificate,
    /// A section that is not X.509.
    #[error("its certificate cannot be parsed ({0})")]
    X509(String),
    /// A leaf certificate where an authority is wanted.
    #[error("its first certificate may not sign others")]
    NotAnAuthority,
}

impl Certificate {
    /// Looks into a DER-encoded certificate.
    ///
    /// # Errors
    /// It is no certificate, or one that is not understood.
    pub fn parse(der: &[u8]) -> Result<Self, Unreadable> {
        let (_, x509) = X509Certificate::from_der(der).map_err(|error| Unreadable::X509(error.to_string()))?;
        let mut certificate = Self {
            common_name: last_common_name(x509.subject()),
            organizations: organizations(x509.subject()),
            sans: BTreeSet::new(),
            not_before: x509.validity().not_before.to_datetime(),
            not_after: x509.validity().not_after.to_datetime(),
            public_key: PublicKey::from_spki(x509.public_key().raw),
            is_authority: x509.is_ca(),
            subject: x509.subject().as_raw().to_vec(),
            issuer: x509.issuer().as_raw().to_vec(),
            subject_key_id: None,
            authority_key_id: None,
        };
        for extension in x509.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => certificate.subject_key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    certificate.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    certificate.sans = names.general_names.iter().filter_map(san).collect();
                }
                ParsedExtension::KeyUsage(usage) => certificate.is_authority &= usage.key_cert_sign(),
                _ => {}
            }
        }
        Ok(certificate)
    }

    /// Looks into the first certificate of a PEM text.
    ///
    /// # Errors
    /// There is none, or it cannot be parsed.
    pub fn first_of(pem: &[u8]) -> Result<Self, Unreadable> {
        Self::parse(&bundle(pem)?[0])
    }
}

/// The certificates of a PEM text, at least one.
pub(crate) fn bundle(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unreadable> {
    if files::is_torn(text) {
        return Err(Unreadable::Empty);
    }
    let certificates = pem::certificates(text).map_err(|_| Unreadable::Pem)?;
    if certificates.is_empty() { Err(Unreadable::NoCertificate) } else { Ok(certificates) }
}

/// The last common name, as Go and so Kubernetes picks it.
pub(crate) fn last_common_name(name: &X509Name<'_>) -> Option<String> {
    name.iter_common_name().last()?.as_str().ok().map(str::to_owned)
}

/// Every organization.
pub(crate) fn organizations(name: &X509Name<'_>) -> BTreeSet<String> {
    name.iter_organization().filter_map(|organization| organization.as_str().ok()).map(str::to_owned).collect()
}

fn san(name: &GeneralName<'_>) -> Option<San> {
    match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| San::Ip(octets.into())),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| San::Ip(octets.into())),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_certificate_is_told_apart() {
        assert_eq!(Certificate::first_of(b""), Err(Unreadable::Empty));
        assert_eq!(Certificate::first_of(&[0; 512]), Err(Unreadable::Empty));
        assert_eq!(Certificate::first_of(b"my shopping list\n"), Err(Unreadable::NoCertificate));
        let garbage = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert_eq!(Certificate::first_of(garbage), Err(Unreadable::Pem));
        let not_x509 = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(Certificate::first_of(not_x509), Err(Unreadable::X509(_))));
    }
}
