//! A certificate to be signed (RFC 5280, TBSCertificate), encoded as Go encodes k3s' certificates.
//!
//! The issuer goes in as the very bytes of the authority's subject: names that users' authorities bear (`DC=example,DC=com`)
//! must come out unchanged, or nobody finds the authority again.

use std::{collections::BTreeSet, net::IpAddr};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use yasna::{
    DERWriter, DERWriterSeq, Tag, construct_der,
    models::{GeneralizedTime, ObjectIdentifier, UTCTime},
};

use crate::{
    key::{PrivateKey, PublicKey},
    leaf::Usage,
    san::San,
};

const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
const SUBJECT_KEY_ID: &[u64] = &[2, 5, 29, 14];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY_ID: &[u64] = &[2, 5, 29, 35];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const SERVER_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];

/// Everything that gets signed.
pub(crate) struct Tbs<'a> {
    pub(crate) serial: u64,
    /// A Name, DER-encoded.
    pub(crate) issuer: &'a [u8],
    /// A Name, DER-encoded.
    pub(crate) subject: &'a [u8],
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) public_key: &'a PublicKey,
    pub(crate) role: Role<'a>,
}

/// What the certificate is for, with the extensions that only its kind has.
pub(crate) enum Role<'a> {
    Authority { key_id: &'a [u8] },
    Leaf { usage: Usage, sans: &'a BTreeSet<San>, authority_key_id: Option<&'a [u8]> },
}

/// A Name of an optional organization and a common name, in Go's order.
pub(crate) fn name(common_name: &str, organization: Option<&str>) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|names| {
            for (kind, value) in [(ORGANIZATION, organization), (COMMON_NAME, Some(common_name))] {
                let Some(value) = value else { continue };
                names.next().write_set(|set| {
                    set.next().write_sequence(|attribute| {
                        attribute.next().write_oid(&ObjectIdentifier::from_slice(kind));
                        if value.chars().all(is_printable) {
                            attribute.next().write_printable_string(value);
                        } else {
                            attribute.next().write_utf8_string(value);
                        }
                    });
                });
            }
        });
    })
}

impl Tbs<'_> {
    /// Signs; `None` if the key cannot.
    pub(crate) fn sign(&self, key: &PrivateKey) -> Option<CertificateDer<'static>> {
        let (scheme, algorithm) = key.certificate_scheme()?;
        // The constants of rustls hold the inside of the AlgorithmIdentifier SEQUENCE.
        let algorithm =
            construct_der(|writer| writer.write_sequence(|inside| inside.next().write_der(algorithm.as_ref())));
        let tbs = self.encode(&algorithm);
        let signature = key.sign(scheme, &tbs)?;
        let der = construct_der(|writer| {
            writer.write_sequence(|certificate| {
                certificate.next().write_der(&tbs);
                certificate.next().write_der(&algorithm);
                certificate.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Some(der.into())
    }

    fn encode(&self, algorithm: &[u8]) -> Vec<u8> {
        const V3: u8 = 2;
        construct_der(|writer| {
            writer.write_sequence(|tbs| {
                tbs.next().write_tagged(Tag::context(0), |version| version.write_u8(V3));
                tbs.next().write_u64(self.serial);
                tbs.next().write_der(algorithm);
                tbs.next().write_der(self.issuer);
                tbs.next().write_sequence(|validity| {
                    write_time(validity.next(), self.not_before);
                    write_time(validity.next(), self.not_after);
                });
                tbs.next().write_der(self.subject);
                tbs.next().write_der(self.public_key.spki());
                tbs.next().write_tagged(Tag::context(3), |writer| {
                    writer.write_sequence(|extensions| self.write_extensions(extensions));
                });
            });
        })
    }

    fn write_extensions(&self, extensions: &mut DERWriterSeq<'_>) {
        // digitalSignature is bit 0, keyEncipherment 2, keyCertSign 5.
        let (key_usage, bits) = match self.role {
            Role::Authority { .. } => (0b1010_0100, 6),
            Role::Leaf { .. } => (0b1010_0000, 3),
        };
        write_extension(extensions.next(), KEY_USAGE, true, |writer| writer.write_bitvec_bytes(&[key_usage], bits));
        match &self.role {
            Role::Authority { key_id } => {
                write_extension(extensions.next(), BASIC_CONSTRAINTS, true, |writer| {
                    writer.write_sequence(|constraints| constraints.next().write_bool(true));
                });
                write_extension(extensions.next(), SUBJECT_KEY_ID, false, |writer| writer.write_bytes(key_id));
            }
            Role::Leaf { usage, sans, authority_key_id } => {
                write_extension(extensions.next(), EXTENDED_KEY_USAGE, false, |writer| {
                    writer.write_sequence(|purposes| {
                        for (purpose, wanted) in [(SERVER_AUTH, usage.is_server()), (CLIENT_AUTH, usage.is_client())] {
                            if wanted {
                                purposes.next().write_oid(&ObjectIdentifier::from_slice(purpose));
                            }
                        }
                    });
                });
                if let Some(id) = authority_key_id {
                    write_extension(extensions.next(), AUTHORITY_KEY_ID, false, |writer| {
                        writer.write_sequence(|fields| {
                            fields.next().write_tagged_implicit(Tag::context(0), |writer| writer.write_bytes(id));
                        });
                    });
                }
                if !sans.is_empty() {
                    write_extension(extensions.next(), SUBJECT_ALT_NAME, false, |writer| {
                        writer.write_sequence(|names| sans.iter().for_each(|san| write_san(names.next(), san)));
                    });
                }
            }
        }
    }
}

fn write_extension(writer: DERWriter<'_>, kind: &[u64], critical: bool, value: impl FnOnce(DERWriter<'_>)) {
    writer.write_sequence(|extension| {
        extension.next().write_oid(&ObjectIdentifier::from_slice(kind));
        if critical {
            extension.next().write_bool(true);
        }
        extension.next().write_bytes(&construct_der(value));
    });
}

fn write_san(writer: DERWriter<'_>, san: &San) {
    match san {
        San::Dns(_) | San::Wildcard(_) => {
            writer.write_tagged_implicit(Tag::context(2), |writer| writer.write_ia5_string(&san.to_string()));
        }
        San::Ip(address) => writer.write_tagged_implicit(Tag::context(7), |writer| match address {
            IpAddr::V4(address) => writer.write_bytes(&address.octets()),
            IpAddr::V6(address) => writer.write_bytes(&address.octets()),
        }),
    }
}

/// UTCTime as long as its two digits reach, as RFC 5280 wants it.
fn write_time(writer: DERWriter<'_>, time: OffsetDateTime) {
    if (1950..2050).contains(&time.year()) {
        writer.write_utctime(&UTCTime::from_datetime(time));
    } else {
        writer.write_generalized_time(&GeneralizedTime::from_datetime(time));
    }
}

/// The alphabet of PrintableString.
fn is_printable(c: char) -> bool {
    c.is_ascii_alphanumeric() || " '()+,-./:=?".contains(c)
}
