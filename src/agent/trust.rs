//! How an agent knows that it talks to its cluster.

use std::{fmt, sync::Once};

use bytes::Bytes;
use k3s_identity::CaHash;
use k3s_pki::{AnyServerCertificate, CertificateFiles, client_config, system_roots};
use k3s_supervisor_api::{RequestError, paths};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tracing::warn;

use crate::join_error::JoinError;

/// Whose certificate a server has to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// One of an authority that the operating system trusts.
    System,
    /// One of these authorities, PEM.
    Authorities(Bytes),
}

/// A client certificate with its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Settles whom to trust, in k3s' order: the operating system's authorities; else those that the server itself shows, if they sign its own
/// certificate and are what the token pins.
///
/// A token without a hash trusts the first server that it sees, which is `told` once. Without any token, the authorities of the first join
/// are asked for. `shown` asks a server for [`paths::CACERTS`] over TLS of this kind.
///
/// # Errors
/// No server answers, or none that the token vouches for.
pub async fn establish<F>(
    shown: impl Fn(ClientConfig) -> F,
    pinned: Option<&CaHash>,
    joined_before: Option<Bytes>,
    told: &Once,
) -> Result<Trust, JoinError>
where
    F: Future<Output = Result<Bytes, RequestError>>,
{
    if let Some(authorities) = joined_before {
        return Ok(Trust::Authorities(authorities));
    }
    if shown(Trust::System.tls(None)?).await.is_ok() {
        if pinned.is_some() {
            warn!("The operating system trusts the server's certificate: the token's hash is not checked.");
        }
        return Ok(Trust::System);
    }
    let authorities = shown(AnyServerCertificate::client_config()).await?;
    let trust = Trust::Authorities(authorities.clone());
    shown(trust.tls(None)?).await?;
    let found =
        CaHash::of(&authorities).map_err(|why| JoinError::Answer { what: paths::CACERTS, why: why.to_string() })?;
    match pinned {
        Some(pinned) if *pinned != found => Err(JoinError::OtherAuthority { pinned: pinned.clone(), found }),
        Some(_) => Ok(trust),
        None => {
            told.call_once(|| {
                warn!(
                    "The token holds no hash of the cluster's authority, so the first server that answers is trusted: use the whole token."
                );
            });
            Ok(trust)
        }
    }
}

impl Trust {
    /// How to talk to a server that is trusted so.
    ///
    /// # Errors
    /// The authorities cannot be read, or the identity's key is not its certificate's.
    pub fn tls(&self, identity: Option<Identity>) -> Result<ClientConfig, JoinError> {
        let roots = match self {
            Self::System => system_roots(),
            Self::Authorities(pem) => {
                let mut roots = RootCertStore::empty();
                let unusable = |why: String| JoinError::Answer { what: paths::CACERTS, why };
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
                    roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
                }
                roots
            }
        };
        let tls = client_config(roots);
        Ok(match identity {
            Some(Identity { chain, key }) => tls.with_client_auth_cert(chain, key).map_err(JoinError::Identity)?,
            None => tls.with_no_client_auth(),
        })
    }
}

impl Identity {
    /// The certificate of an earlier join; `None` if there is none that can be used.
    pub(crate) fn load(files: &CertificateFiles) -> Option<Self> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.certificate).ok()?.collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty())?;
        Some(Self { chain, key: PrivateKeyDer::from_pem_file(&files.key).ok()? })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}
