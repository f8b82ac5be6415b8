//! Whether an authority may take the place of the one in use, and service-account keys that of others.
//!
//! The rules are k3s' for `k3s certificate rotate-ca`. They keep alive what was issued before: whoever trusts the old authority has to find
//! a way from the new one to it, and tokens that the old key signed have to stay valid. Whoever forces a change gives that up, and no more:
//! what no server could start with is refused in any case.

use std::time::SystemTime;

use rustls::{
    SignatureAlgorithm,
    pki_types::pem::{PemObject, SectionKind},
};
use time::OffsetDateTime;

use crate::{
    certificate::{Certificate, Unreadable, bundle},
    chain,
    client_auth::ClientCa,
    key::{PrivateKey, PublicKey},
};

/// Why something new may not take the place of the old.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is no authority.
    #[error("it is not a certificate authority in PEM form: {0}")]
    NotAnAuthority(Unreadable),
    /// What comes with it is no key.
    #[error("its key is not an unencrypted private key in PEM form (RSA, ECDSA or Ed25519)")]
    NotAKey,
    /// Authority and key do not belong together.
    #[error("its first certificate is not for its key")]
    OtherKey,
    /// It is past its end.
    #[error("it ended on {}", .0.date())]
    Ended(OffsetDateTime),
    /// It begins later.
    #[error("it is not valid before {0}")]
    NotYetValid(OffsetDateTime),
    /// There is nothing that tokens of service accounts could be signed with.
    #[error("its first private key is not one that tokens of service accounts can be signed with (RSA or ECDSA)")]
    NotASigningKey,
    /// The way to its root is left out.
    #[error("it holds a single certificate, and not those that lead to its root")]
    Single,
    /// Who trusts the old one does not trust it.
    #[error("the old authority has signed neither its first certificate nor one that leads there")]
    Unrelated,
    /// Tokens signed by the old key would mean nothing.
    #[error("the key that signs tokens of service accounts now is not in it")]
    SigningKeyLost,
}

impl Unfit {
    /// Whether a cluster can live with it, once everything that trusts the old is started again.
    pub fn can_be_forced(&self) -> bool {
        match self {
            Self::Single | Self::Unrelated | Self::SigningKeyLost => true,
            Self::NotAnAuthority(_)
            | Self::NotAKey
            | Self::OtherKey
            | Self::Ended(_)
            | Self::NotYetValid(_)
            | Self::NotASigningKey => false,
        }
    }
}

/// Whether the authority of the chain `new` with this `key` can take the place of the one of the chain `old`; all PEM.
///
/// # Errors
/// The first reason against it; those that can be forced come last.
pub fn authority_succeeds(old: &[u8], new: &[u8], key: &[u8], now: SystemTime) -> Result<(), Unfit> {
    let now = OffsetDateTime::from(now);
    // Whatever it is for, the front and its clients have to be able to trust all of it.
    ClientCa::new(new).map_err(Unfit::NotAnAuthority)?;
    let chain = bundle(new).map_err(Unfit::NotAnAuthority)?;
    let first = Certificate::parse(&chain[0]).map_err(Unfit::NotAnAuthority)?;
    if !first.is_authority {
        return Err(Unfit::NotAnAuthority(Unreadable::NotAnAuthority));
    }
    let key = PrivateKey::from_pem(key).ok_or(Unfit::NotAKey)?;
    if *key.public() != first.public_key {
        return Err(Unfit::OtherKey);
    }
    if now > first.not_after {
        return Err(Unfit::Ended(first.not_after));
    }
    if now < first.not_before {
        return Err(Unfit::NotYetValid(first.not_before));
    }
    if chain.len() == 1 {
        return Err(Unfit::Single);
    }
    // An old authority that cannot be read is trusted by nobody.
    let trusted = bundle(old).unwrap_or_default();
    if chain::leads_to(&chain, &trusted, now) { Ok(()) } else { Err(Unfit::Unrelated) }
}

/// Whether the service-account keys of the file `new` (`service.key`) can take the place of those of `old`: the first one signs, and all of
/// them check, private or public.
///
/// # Errors
/// The first reason against it; those that can be forced come last.
pub fn service_keys_succeed(old: &[u8], new: &[u8]) -> Result<(), Unfit> {
    let signs =
        |key: &PrivateKey| matches!(key.signer().algorithm(), SignatureAlgorithm::RSA | SignatureAlgorithm::ECDSA);
    PrivateKey::from_pem(new).filter(signs).ok_or(Unfit::NotASigningKey)?;
    // Without a key of before there are no tokens either.
    let Some(old) = PrivateKey::from_pem(old) else { return Ok(()) };
    if public_keys(new).contains(old.public()) { Ok(()) } else { Err(Unfit::SigningKeyLost) }
}

/// The keys that kube-apiserver would check tokens with; other sections are skipped, as there.
fn public_keys(pem: &[u8]) -> Vec<PublicKey> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).filter_map(Result::ok);
    let key = |(kind, der): (SectionKind, Vec<u8>)| match kind {
        SectionKind::PublicKey => Some(PublicKey::from_spki(&der)),
        SectionKind::Certificate => Certificate::parse(&der).ok().map(|certificate| certificate.public_key),
        kind => PrivateKey::from_section(kind, der).map(|key| key.public().clone()),
    };
    sections.filter_map(key).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::authority::CertificateAuthority;

    /// 2027-01-15
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000)
    }

    /// An authority of the user's.
    struct Authority {
        params: CertificateParams,
        key: KeyPair,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.use_authority_key_identifier_extension = true;
            Self { params, key: KeyPair::generate().unwrap() }
        }

        fn lasting(mut self, from: i32, until: i32) -> Self {
            (self.params.not_before, self.params.not_after) =
                (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
            self
        }

        fn allowing_below(mut self, authorities: u8) -> Self {
            self.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(authorities));
            self
        }

        fn root(&self) -> String {
            self.params.self_signed(&self.key).unwrap().pem()
        }

        fn signed_by(&self, parent: &Self) -> String {
            self.params.signed_by(&self.key, &Issuer::from_params(&parent.params, &parent.key)).unwrap().pem()
        }

        fn key(&self) -> String {
            self.key.serialize_pem()
        }
    }

    fn judged(old: &str, new: &str, key: &str) -> Result<(), Unfit> {
        authority_succeeds(old.as_bytes(), new.as_bytes(), key.as_bytes(), now())
    }

    #[test]
    fn an_authority_below_the_same_root_succeeds() {
        let [root, middle, old, new] = ["root", "middle", "server-ca", "server-ca"].map(Authority::new);
        let above = middle.signed_by(&root) + &root.root();
        let (old, new_chain) = (old.signed_by(&middle) + &above, new.signed_by(&middle) + &above);
        assert_eq!(judged(&old, &new_chain, &new.key()), Ok(()));
        // The way may be in the old chain alone, in any order.
        assert_eq!(judged(&old, &(new.signed_by(&middle) + &root.root()), &new.key()), Ok(()));
        // Its key may be followed by others.
        assert_eq!(judged(&old, &new_chain, &(new.key() + &root.key())), Ok(()));
    }

    #[test]
    fn an_authority_whose_root_the_old_one_has_signed_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let files = crate::CertificateFiles::at(dir.path(), "server-ca");
        let ours = CertificateAuthority::ensure(files.clone(), "k3s-server", now()).unwrap();
        let old = String::from_utf8(ours.bundle().to_vec()).unwrap();
        let old_key = KeyPair::from_pem(&std::fs::read_to_string(&files.key).unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&old, old_key).unwrap();
        let [root, new] = ["k3s-server-root", "k3s-server-ca"].map(Authority::new);
        let cross_signed = root.params.signed_by(&root.key, &issuer).unwrap().pem();
        let chain = new.signed_by(&root) + &root.root() + &cross_signed + &old;
        assert_eq!(judged(&old, &chain, &new.key()), Ok(()));
        // Without the old root itself: those who trust it have it.
        assert_eq!(judged(&old, &(new.signed_by(&root) + &cross_signed), &new.key()), Ok(()));
        let unrelated = new.signed_by(&root) + &root.root() + &old;
        assert_eq!(judged(&old, &unrelated, &new.key()), Err(Unfit::Unrelated));
    }

    #[test]
    fn strangers_can_be_forced() {
        let [old, root, new] = ["server-ca", "root", "server-ca"].map(Authority::new);
        for (chain, expected) in [(new.root(), Unfit::Single), (new.signed_by(&root) + &root.root(), Unfit::Unrelated)]
        {
            assert_eq!(judged(&old.root(), &chain, &new.key()), Err(expected.clone()));
            assert!(expected.can_be_forced());
        }
        // Of the same name, by another key.
        let impostor = Authority::new("server-ca");
        let chain = new.signed_by(&impostor) + &old.root();
        assert_eq!(judged(&old.root(), &chain, &new.key()), Err(Unfit::Unrelated));
    }

    #[test]
    fn a_way_over_authorities_that_end_or_forbid_it_is_none() {
        let new = Authority::new("server-ca");
        let judge = |root: &Authority, middle: &Authority| {
            let chain = new.signed_by(middle) + &middle.signed_by(root);
            judged(&root.root(), &chain, &new.key())
        };
        let root = || Authority::new("root");
        let middle = || Authority::new("middle");
        assert_eq!(judge(&root().allowing_below(2), &middle().allowing_below(1)), Ok(()));
        for (root, middle) in [
            (root().allowing_below(1), middle()),
            (root(), middle().allowing_below(0)),
            (root().lasting(2020, 2026), middle()),
            (root(), middle().lasting(2028, 2030)),
        ] {
            assert_eq!(judge(&root, &middle), Err(Unfit::Unrelated));
        }
    }

    #[test]
    fn what_no_server_could_start_with_cannot_be_forced() {
        let [old, new] = ["server-ca", "server-ca"].map(Authority::new);
        let chain = |new: &Authority| new.signed_by(&old) + &old.root();
        let leaf = CertificateParams::default().self_signed(&new.key).unwrap().pem();
        let (ended, future) = (Authority::new("a").lasting(2020, 2026), Authority::new("a").lasting(2030, 2040));
        let table = [
            (String::new(), new.key(), "it is not a certificate authority in PEM form: it is empty"),
            ("my shopping list".into(), new.key(), "it holds no certificate"),
            (leaf, new.key(), "may not sign others"),
            (
                chain(&new) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                new.key(),
                "cannot be parsed",
            ),
            (chain(&new), String::new(), "its key is not an unencrypted private key"),
            (chain(&new), old.key(), "its first certificate is not for its key"),
            (chain(&ended), ended.key(), "it ended on 2026-01-01"),
            (chain(&future), future.key(), "it is not valid before 2030-01-01"),
        ];
        for (chain, key, why) in table {
            let unfit = judged(&old.root(), &chain, &key).unwrap_err();
            assert!(unfit.to_string().contains(why) && !unfit.can_be_forced(), "{why}: {unfit}");
        }
    }

    #[test]
    fn service_account_keys_follow_each_other() {
        let [old, new] = [(); 2].map(|()| PrivateKey::generate_rsa().unwrap());
        let ec = PrivateKey::generate().unwrap();
        let public = crate::pem::encode("PUBLIC KEY", old.public().spki());
        let judged = |new: &str| service_keys_succeed(old.pem().as_bytes(), new.as_bytes());
        for succeeding in [old.pem(), new.pem() + &old.pem(), ec.pem() + &public] {
            assert_eq!(judged(&succeeding), Ok(()));
        }
        assert_eq!(judged(&new.pem()), Err(Unfit::SigningKeyLost));
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        for unusable in ["", "my shopping list", &public, &(ed25519 + &old.pem())] {
            assert_eq!(judged(unusable), Err(Unfit::NotASigningKey));
        }
        assert!(Unfit::SigningKeyLost.can_be_forced() && !Unfit::NotASigningKey.can_be_forced());
    }
}
