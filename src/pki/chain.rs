//! The way from an authority to its root.

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::certificate::{Certificate, Unreadable, bundle};

/// The root of a bundle's first certificate, if the bundle holds more than one certificate and leads there.
///
/// This is what tokens pin of a bundle with a chain, so that authorities below the same root can change. A root is, as
/// in k3s, whatever is not signed by another key. Unlike k3s we do not ask the clock: what is pinned never changes with it.
///
/// # Errors
/// It is no PEM, or holds something that is no certificate.
pub fn root(pem: &[u8]) -> Result<Option<CertificateDer<'static>>, Unreadable> {
    let ders = bundle(pem)?;
    let certificates = ders.iter().map(|der| Certificate::parse(der)).collect::<Result<Vec<_>, _>>()?;
    let mut candidates: Vec<usize> = (1..ders.len()).collect();
    // Roots first: the shortest way counts.
    candidates.sort_by_key(|i| !is_root(&certificates[*i]));

    let mut current = 0;
    while let Some(at) = candidates.iter().position(|parent| {
        let (child, parent_facts) = (&certificates[current], &certificates[*parent]);
        parent_facts.is_authority && child.issuer == parent_facts.subject && signed(&ders[current], &ders[*parent])
    }) {
        let parent = candidates.remove(at);
        if is_root(&certificates[parent]) {
            return Ok(Some(ders[parent].clone()));
        }
        current = parent;
    }
    Ok(None)
}

/// Whether a way leads from the first certificate of `chain`, by the others and by `trusted`, to a root of `trusted`: whoever trusts that
/// believes what the first one signs. All of them have to be valid `now`, and may not forbid so long a way.
pub(crate) fn leads_to(
    chain: &[CertificateDer<'static>],
    trusted: &[CertificateDer<'static>],
    now: OffsetDateTime,
) -> bool {
    let Some(first) = chain.first().and_then(|first| Link::of(first, false)) else { return false };
    let further = chain[1..].iter().filter_map(|der| Link::of(der, false));
    let mut candidates: Vec<_> = trusted.iter().filter_map(|der| Link::of(der, true)).chain(further).collect();
    // Step by step away from the first, so that each is met on its shortest way.
    let mut step = vec![first];
    let mut authorities_below = 1;
    while !step.is_empty() {
        let mut reached = Vec::new();
        for child in &step {
            reached.extend(candidates.extract_if(.., |parent| parent.signed(child, authorities_below, now)));
        }
        if reached.iter().any(|parent| parent.trusted && is_root(&parent.facts)) {
            return true;
        }
        step = reached;
        authorities_below += 1;
    }
    false
}

/// A certificate on the way.
struct Link<'a> {
    facts: Certificate,
    der: &'a CertificateDer<'static>,
    trusted: bool,
}

impl<'a> Link<'a> {
    fn of(der: &'a CertificateDer<'static>, trusted: bool) -> Option<Self> {
        Some(Self { facts: Certificate::parse(der).ok()?, der, trusted })
    }

    fn signed(&self, child: &Self, authorities_below: u32, now: OffsetDateTime) -> bool {
        self.facts.is_authority
            && self.facts.subject == child.facts.issuer
            && (self.facts.not_before..=self.facts.not_after).contains(&now)
            && allows_below(self.der) >= authorities_below
            && signed(child.der, self.der)
    }
}

/// A root is, as in k3s, whatever is not signed by another key.
fn is_root(certificate: &Certificate) -> bool {
    certificate.authority_key_id.is_none() || certificate.authority_key_id == certificate.subject_key_id
}

/// How many authorities may follow below this one, besides the one that signs leaf certificates.
fn allows_below(authority: &CertificateDer<'_>) -> u32 {
    let Ok((_, authority)) = X509Certificate::from_der(authority) else { return 0 };
    let constraints = authority.basic_constraints().ok().flatten();
    constraints.and_then(|constraints| constraints.value.path_len_constraint).unwrap_or(u32::MAX)
}

fn signed(child: &CertificateDer<'_>, parent: &CertificateDer<'_>) -> bool {
    let (Ok((_, child)), Ok((_, parent))) = (X509Certificate::from_der(child), X509Certificate::from_der(parent))
    else {
        return false;
    };
    child.verify_signature(Some(parent.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    fn authority(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        params
    }

    #[test]
    fn a_chain_leads_to_its_root_whatever_the_order() {
        let [root, middle, leaf] = ["root", "middle", "server-ca"].map(authority);
        let [root_key, middle_key, leaf_key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let leaf = leaf.signed_by(&leaf_key, &Issuer::from_params(&middle, &middle_key)).unwrap().pem();
        let middle = middle.signed_by(&middle_key, &Issuer::from_params(&root, &root_key)).unwrap().pem();
        let root_certificate = root.self_signed(&root_key).unwrap();
        let (root, stranger) = (root_certificate.pem(), authority("root").self_signed(&leaf_key).unwrap().pem());

        let expected = Ok(Some(root_certificate.der().clone()));
        for bundle in
            [leaf.clone() + &middle + &root, leaf.clone() + &root + &middle, leaf.clone() + &stranger + &root + &middle]
        {
            assert_eq!(super::root(bundle.as_bytes()), expected);
        }
        for rootless in [leaf.clone() + &middle, leaf.clone() + &middle + &stranger, leaf + &root, root] {
            assert_eq!(super::root(rootless.as_bytes()), Ok(None));
        }
    }
}
