//! Whether a certificate is kept or issued again.
//!
//! The rules are k3s', so that a directory that goes back and forth between k3s and us is not rewritten at each turn;
//! [`Reason::NotYetValid`], [`Reason::OtherKey`], [`Reason::OtherChain`] and the comparison of the issuer's name are ours.

use std::{collections::BTreeSet, fmt};

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::{
    authority::CertificateAuthority,
    certificate::{Certificate, Unreadable},
    key::PublicKey,
    leaf::{Lifetime, Profile},
    san::San,
};

/// With this much left or less, a certificate of a year is issued again: a device that is switched on once a quarter stays valid.
pub const RENEW_BEFORE: Duration = Duration::days(120);

/// A shorter one is issued again with a third of its life left.
pub fn renew_before(lifetime: Lifetime) -> Duration {
    RENEW_BEFORE.min(lifetime.duration() / 3)
}

/// What to do with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// Issue it again.
    Renew(Reason),
}

/// Why a certificate is issued again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// There was none.
    Missing,
    /// What was there is no certificate.
    Unreadable(Unreadable),
    /// It ends soon, or has ended.
    Expiring(OffsetDateTime),
    /// It begins in the future though its authority does not: it was made while the clock was ahead.
    NotYetValid(OffsetDateTime),
    /// It names another user, server or group.
    Subject,
    /// It lacks a name or address.
    MissingSan(San),
    /// Another authority signed it.
    OtherAuthority,
    /// Its authority leads to another root by now.
    OtherChain,
    /// It is for another key.
    OtherKey,
    /// The user asked for it.
    Requested,
}

/// Holds what was found, with the `chain` that follows it, against what is wanted from `authority` for `key`. SANs beyond the wanted ones
/// are no reason, nor is a certificate that stands alone: releases of k3s before chains wrote it so.
pub fn decision(
    found: &Certificate,
    chain: &[CertificateDer<'_>],
    wanted: &Profile,
    authority: &CertificateAuthority,
    key: &PublicKey,
    now: OffsetDateTime,
) -> Decision {
    match decide(found, wanted, authority.certificate(), renew_before(authority.lifetime()), key, now) {
        Decision::Keep if !chain.is_empty() && chain != authority.chain() => Decision::Renew(Reason::OtherChain),
        decision => decision,
    }
}

fn decide(
    found: &Certificate,
    wanted: &Profile,
    authority: &Certificate,
    renew_before: Duration,
    key: &PublicKey,
    now: OffsetDateTime,
) -> Decision {
    let wanted_organizations: BTreeSet<&str> = wanted.organization.iter().map(String::as_str).collect();
    let renew = Decision::Renew;
    if found.not_after - now <= renew_before {
        renew(Reason::Expiring(found.not_after))
    } else if found.not_before > now && authority.not_before <= now {
        renew(Reason::NotYetValid(found.not_before))
    } else if found.common_name.as_deref() != Some(&wanted.common_name)
        || !found.organizations.iter().map(String::as_str).eq(wanted_organizations)
    {
        renew(Reason::Subject)
    } else if let Some(missing) = wanted.sans.difference(&found.sans).next() {
        renew(Reason::MissingSan(missing.clone()))
    } else if found.authority_key_id != authority.subject_key_id || found.issuer != authority.subject {
        renew(Reason::OtherAuthority)
    } else if found.public_key != *key {
        renew(Reason::OtherKey)
    } else {
        Decision::Keep
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there was none"),
            Self::Unreadable(why) => why.fmt(f),
            Self::Expiring(at) => write!(f, "it ends on {}", at.date()),
            Self::NotYetValid(at) => write!(f, "it begins on {}", at.date()),
            Self::Subject => f.write_str("it names another subject"),
            Self::MissingSan(san) => write!(f, "it lacks {san}"),
            Self::OtherAuthority => f.write_str("another authority signed it"),
            Self::OtherChain => f.write_str("its authority has another chain"),
            Self::OtherKey => f.write_str("it is for another key"),
            Self::Requested => f.write_str("it was asked for"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));

    fn localhost() -> San {
        "localhost".parse().unwrap()
    }

    fn authority() -> Certificate {
        Certificate {
            common_name: Some("k3s-server-ca@1".into()),
            organizations: BTreeSet::new(),
            sans: BTreeSet::new(),
            not_before: NOW - Duration::days(30),
            not_after: NOW + Duration::days(3620),
            public_key: PublicKey::from_spki(b"authority"),
            is_authority: true,
            subject: b"CN=k3s-server-ca@1".into(),
            issuer: b"CN=k3s-server-ca@1".into(),
            subject_key_id: Some(b"id".into()),
            authority_key_id: None,
        }
    }

    fn found() -> Certificate {
        Certificate {
            common_name: Some("system:apiserver".into()),
            organizations: ["system:masters".into()].into(),
            sans: [localhost(), "learned.example.com".parse().unwrap()].into(),
            not_before: NOW - Duration::days(30),
            not_after: NOW + Duration::days(335),
            public_key: PublicKey::from_spki(b"leaf"),
            is_authority: false,
            subject: b"O=system:masters,CN=system:apiserver".into(),
            issuer: b"CN=k3s-server-ca@1".into(),
            subject_key_id: None,
            authority_key_id: Some(b"id".into()),
        }
    }

    fn wanted() -> Profile {
        Profile { sans: [localhost()].into(), ..Profile::client("system:apiserver", Some("system:masters")) }
    }

    #[test]
    fn every_reason() {
        let day = Duration::days(1);
        let ends = |left| Certificate { not_after: NOW + left, ..found() };
        let table: [(&str, Certificate, Decision); 13] = [
            ("as wanted, with a SAN more", found(), Decision::Keep),
            ("121 days left", ends(121 * day), Decision::Keep),
            ("120 days left", ends(120 * day), Decision::Renew(Reason::Expiring(NOW + 120 * day))),
            ("ended", ends(-day), Decision::Renew(Reason::Expiring(NOW - day))),
            (
                "made while the clock was ahead",
                Certificate { not_before: NOW + day, ..found() },
                Decision::Renew(Reason::NotYetValid(NOW + day)),
            ),
            (
                "another user",
                Certificate { common_name: Some("system:admin".into()), ..found() },
                Decision::Renew(Reason::Subject),
            ),
            ("no user", Certificate { common_name: None, ..found() }, Decision::Renew(Reason::Subject)),
            (
                "a group less",
                Certificate { organizations: BTreeSet::new(), ..found() },
                Decision::Renew(Reason::Subject),
            ),
            (
                "a group more",
                Certificate { organizations: ["system:masters".into(), "x".into()].into(), ..found() },
                Decision::Renew(Reason::Subject),
            ),
            (
                "a SAN less",
                Certificate { sans: BTreeSet::new(), ..found() },
                Decision::Renew(Reason::MissingSan(localhost())),
            ),
            (
                "another authority's key",
                Certificate { authority_key_id: Some(b"other".into()), ..found() },
                Decision::Renew(Reason::OtherAuthority),
            ),
            (
                "the authority made again for the same key",
                Certificate { issuer: b"CN=k3s-server-ca@0".into(), ..found() },
                Decision::Renew(Reason::OtherAuthority),
            ),
            (
                "another key",
                Certificate { public_key: PublicKey::from_spki(b"other"), ..found() },
                Decision::Renew(Reason::OtherKey),
            ),
        ];
        for (case, found, expected) in table {
            assert_eq!(
                decide(&found, &wanted(), &authority(), RENEW_BEFORE, &PublicKey::from_spki(b"leaf"), NOW),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn a_short_life_has_its_third_left() {
        let days = |days: u16| renew_before(Lifetime::of_days(days.try_into().unwrap()));
        assert_eq!((days(30), days(365)), (Duration::days(10), RENEW_BEFORE));
        assert_eq!(renew_before(Lifetime::default()), RENEW_BEFORE);
    }

    #[test]
    fn a_clock_behind_the_authority_renews_nothing() {
        let before_both = NOW - Duration::days(60);
        let key = PublicKey::from_spki(b"leaf");
        let decision = decide(&found(), &wanted(), &authority(), RENEW_BEFORE, &key, before_both);
        assert_eq!(decision, Decision::Keep, "a renewed certificate would not be valid either");
    }
}
