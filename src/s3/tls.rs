//! Whom a bucket's server has to be.

use k3s_config::s3::{CaSource, S3Security};
use k3s_pki::{AnyServerCertificate, client_config, system_roots};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use crate::S3Error;

/// How to shake hands; `None` without TLS.
pub(crate) fn config(security: &S3Security) -> Result<Option<ClientConfig>, S3Error> {
    Ok(match security {
        S3Security::Plain => None,
        S3Security::Unverified => Some(AnyServerCertificate::client_config()),
        S3Security::Verified(authorities) => Some(client_config(roots(authorities)?).with_no_client_auth()),
    })
}

fn roots(authorities: &[CaSource]) -> Result<RootCertStore, S3Error> {
    if authorities.is_empty() {
        return Ok(system_roots());
    }
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let (pem, place) = match authority {
            CaSource::File(path) => (std::fs::read(path), path.display().to_string()),
            CaSource::Pem(pem) => (Ok(pem.clone()), "what etcd-s3-endpoint-ca holds".to_owned()),
        };
        let unusable = |why: String| S3Error::Authority { place: place.clone(), why };
        let pem = pem.map_err(|error| unusable(error.to_string()))?;
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(unusable("it holds no certificate".to_owned()));
        }
    }
    Ok(roots)
}
