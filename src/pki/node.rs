//! Certificates that a node asks its server for.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::SystemTime,
};

use crate::{
    authority::CertificateAuthority,
    error::Error,
    key::{PrivateKey, PublicKey},
    leaf::Profile,
    san::{HostName, San},
    server::ServerPki,
};

/// What every node needs, and what `/v1-k3s/*.crt` serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeCertificate {
    /// kubelet's serving certificate.
    ServingKubelet {
        /// The node.
        node: HostName,
        /// Its addresses, inner and outer.
        ips: Vec<IpAddr>,
    },
    /// kubelet as a client of the API: `system:node:<node>`.
    ClientKubelet {
        /// The node.
        node: HostName,
    },
    /// kube-proxy as a client of the API.
    ClientKubeProxy,
    /// The agent's own controllers as a client of the API.
    ClientK3sController,
}

impl NodeCertificate {
    /// What the certificate says.
    pub fn profile(&self) -> Profile {
        match self {
            Self::ServingKubelet { node, ips } => {
                let mut sans: BTreeSet<San> = ips.iter().copied().map(San::from).collect();
                sans.insert(San::Ip(Ipv4Addr::LOCALHOST.into()));
                sans.insert(HostName::known("localhost").into());
                sans.insert(node.clone().into());
                Profile::server(node.as_str(), sans)
            }
            Self::ClientKubelet { node } => Profile::client(&format!("system:node:{node}"), Some("system:nodes")),
            Self::ClientKubeProxy => Profile::client("system:kube-proxy", None),
            Self::ClientK3sController => Profile::client("system:k3s-controller", None),
        }
    }
}

impl ServerPki {
    /// Signs a node's certificate for its public key: PEM, the authority's chain included, as k3s agents expect it.
    ///
    /// Whether the asker is that node is for the caller to know.
    ///
    /// # Errors
    /// The authority cannot sign.
    pub fn sign(&self, certificate: &NodeCertificate, key: &PublicKey, now: SystemTime) -> Result<String, Error> {
        self.authority_of(certificate).issue(&certificate.profile(), key, now.into())
    }

    /// The same for a node that sends no key: the one that this server shares with all such nodes, which follows the chain. Releases
    /// of k3s from before signing requests ask so.
    ///
    /// # Errors
    /// The shared key cannot be read or made, or the authority cannot sign.
    pub fn sign_with_shared_key(&self, certificate: &NodeCertificate, now: SystemTime) -> Result<String, Error> {
        let key = PrivateKey::load_or_generate(match certificate {
            NodeCertificate::ServingKubelet { .. } => &self.serving_kubelet_key,
            NodeCertificate::ClientKubelet { .. } => &self.client_kubelet_key,
            NodeCertificate::ClientKubeProxy => &self.client_kube_proxy.key,
            NodeCertificate::ClientK3sController => &self.client_k3s_controller.key,
        })?;
        Ok(self.sign(certificate, key.public(), now)? + &key.pem())
    }

    pub(crate) fn authority_of(&self, certificate: &NodeCertificate) -> &CertificateAuthority {
        match certificate {
            NodeCertificate::ServingKubelet { .. } => &self.server_ca,
            _ => &self.client_ca,
        }
    }
}
