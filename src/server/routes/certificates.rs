//! `/v1-k3s/*.crt`: certificates for nodes.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, Method};
use k3s_http::Status;
use k3s_pki::{NodeCertificate, PublicKey, RequestError, ServerPki};
use k3s_supervisor_api::{CertificateKind, NodeClaim};
use tokio::task::spawn_blocking;
use tracing::{error, warn};

use super::{neighbours::Neighbours, reserved::Reserved};
use crate::{caller::Caller, node_passwords::NodePasswords};

/// Signs for nodes whose claims hold.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) pki: Arc<ServerPki>,
    pub(super) node_passwords: Arc<NodePasswords>,
    pub(super) reserved: Reserved,
    pub(super) neighbours: Neighbours,
}

/// A request for a certificate.
pub(super) struct CertificateRequest<'a> {
    pub(super) caller: &'a Caller,
    pub(super) from: IpAddr,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

impl Certificates {
    /// The certificate and its authority's chain as PEM, for the key in the posted signing request. As in k3s, whoever posts none gets
    /// the key that the server keeps for such nodes, too.
    pub(super) async fn answer(
        &self,
        kind: CertificateKind,
        request: CertificateRequest<'_>,
    ) -> Result<String, Status> {
        let key = key_in(request.method, request.body)?;
        let (certificate, claim) = match kind {
            CertificateKind::ServingKubelet => {
                let claim = NodeClaim::of(request.headers)?;
                let certificate = NodeCertificate::ServingKubelet { node: claim.name.clone(), ips: claim.ips.clone() };
                (certificate, Some(claim))
            }
            CertificateKind::ClientKubelet => {
                let claim = NodeClaim::of(request.headers)?;
                (NodeCertificate::ClientKubelet { node: claim.name.clone() }, Some(claim))
            }
            CertificateKind::ClientKubeProxy => (NodeCertificate::ClientKubeProxy, None),
            CertificateKind::ClientK3sController => (NodeCertificate::ClientK3sController, None),
        };
        if let Some(claim) = &claim {
            self.reserved.check(claim)?;
            // Without the API only the server's own node is admitted below.
            self.neighbours.check(claim, request.from).await?;
            self.node_passwords.admit(request.caller, claim).await?;
        }
        self.sign(certificate, key, request.from).await
    }

    async fn sign(&self, certificate: NodeCertificate, key: Option<PublicKey>, from: IpAddr) -> Result<String, Status> {
        let failed = |why: &dyn std::fmt::Display| {
            error!(%from, error = %why, "A node's certificate could not be signed.");
            Status::internal("the server could not sign the certificate; its log says why")
        };
        let pki = self.pki.clone();
        let signed = spawn_blocking(move || match &key {
            Some(key) => pki.sign(&certificate, key, SystemTime::now()),
            None => {
                warn!(%from, "A node sent no signing request and gets the key that all such nodes share.");
                pki.sign_with_shared_key(&certificate, SystemTime::now())
            }
        });
        signed.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }
}

/// The key in a posted request; `None` if there is no request.
fn key_in(method: &Method, body: &[u8]) -> Result<Option<PublicKey>, Status> {
    if *method != Method::POST {
        return Ok(None);
    }
    match PublicKey::from_request(body) {
        Ok(key) => Ok(Some(key)),
        Err(RequestError::Unreadable) => Ok(None),
        Err(error @ RequestError::Unproven) => Err(Status::bad_request(error.to_string())),
    }
}
