//! The way from an authority to its root.

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::certificate::{Certificate, Unreadable, bundle};

/// The root of a bundle's first certificate, if the bundle holds more than one certificate and leads there.
///
/// This is what tokens pin of a bundle with a chain, so that authorities below the same root can change. A root is, as
/// in k3s, whatever is not signed by another key. Unlike k3s we do not ask the clock: what is pinned never changes with it.
pub fn root(pem: &[u8]) -> Result<Option<CertificateDer<'static>>, Unreadable> {
    let ders = bundle(pem)?;
    let certificates = ders.iter().map(|der| Certificate::parse(der)).collect::<Result<Vec<_>, _>>()?;
    let is_root = |i: usize| {
        certificates[i].authority_key_id.is_none() || certificates[i].authority_key_id == certificates[i].subject_key_id
    };
    let mut candidates: Vec<usize> = (1..ders.len()).collect();
    // Roots first: the shortest way counts.
    candidates.sort_by_key(|i| !is_root(*i));

    let mut current = 0;
    while let Some(at) = candidates.iter().position(|parent| {
        let (child, parent_facts) = (&certificates[current], &certificates[*parent]);
        parent_facts.is_authority && child.issuer == parent_facts.subject && signed(&ders[current], &ders[*parent])
    }) {
        let parent = candidates.remove(at);
        if is_root(parent) {
            return Ok(Some(ders[parent].clone()));
        }
        current = parent;
    }
    Ok(None)
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
