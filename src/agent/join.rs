//! Joining: an agent's configuration, authorities and certificates, from a server.
//!
//! ```text
//! /cacerts ─► trust ─► config ─► client-ca, server-ca ─► four certificates for keys that never leave the node ─► files
//! ```
//!
//! Nothing is written before everything has come, so that a join which breaks off changes nothing. The files are k3s' own, so that
//! either takes over the other's directory.

use std::{net::IpAddr, path::PathBuf};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use k3s_balancer::Balancer;
use k3s_config::agent::ServerUrl;
use k3s_files::{self as files, FileError, PRIVATE};
use k3s_identity::{CaHash, Password, Token};
use k3s_pki::{AgentPki, Certificate, CertificateFiles, PrivateKey};
use tracing::info;

use crate::{
    cache::ClusterCache,
    cluster_config::{ClusterConfig, UnusableConfig},
    https::RequestError,
    server_api::{Asked, ServerApi, node_headers},
    trust::{self, Identity},
};

/// A node that wants in.
#[derive(Debug)]
pub(crate) struct Applicant {
    /// Where it was told to register.
    pub(crate) server: ServerUrl,
    /// The way there.
    pub(crate) balancer: Balancer,
    /// What lets it in; `None` where certificates of an earlier join do.
    pub(crate) token: Option<Token>,
    /// Its whole name.
    pub(crate) name: String,
    /// What keeps others from taking its name.
    pub(crate) password: Password,
    /// Its own addresses.
    pub(crate) ips: Vec<IpAddr>,
    /// Where the outside reaches it.
    pub(crate) external_ips: Vec<IpAddr>,
    /// `<data>/agent`.
    pub(crate) dir: PathBuf,
    /// Where its components reach the API.
    pub(crate) apiserver: String,
}

/// What a join brought.
pub(crate) struct Joined {
    pub(crate) config: ClusterConfig,
    /// With the certificate that the join brought.
    pub(crate) api: ServerApi,
}

/// Why a node is not in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A server could not be asked.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The token was taken from another cluster, or somebody else answers at the server's address.
    #[error(
        "the token belongs to a cluster whose authority has the hash {}, but the server's has {}: give the token of this cluster, \
         or correct --server", pinned.as_str(), found.as_str()
    )]
    OtherAuthority {
        /// As the token has it.
        pinned: CaHash,
        /// As the server shows it.
        found: CaHash,
    },
    /// Neither token nor certificate is taken.
    #[error(
        "the server {server} does not accept the token: give this agent the one in server/agent-token of a server (--token)"
    )]
    Credentials {
        /// Where it was told to register.
        server: ServerUrl,
    },
    /// The name belongs to another machine.
    #[error(
        "the server {server} refuses the node name {name}: another machine has it, or this one has lost its /etc/rancher/node/password; \
         run `k3s node forget {name}` on a server if this is the machine that had it, else give this one another name with --node-name \
         or --with-node-id"
    )]
    NameTaken {
        /// Where it was told to register.
        server: ServerUrl,
        /// The name.
        name: String,
    },
    /// An answer that makes no sense.
    #[error("the server's {what} cannot be used: {why}")]
    Answer {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster is one that this node cannot be part of.
    #[error("the cluster's configuration cannot be used: {0}")]
    Config(#[from] UnusableConfig),
    /// The password file holds what no request can carry.
    #[error(
        "/etc/rancher/node/password holds characters that cannot be sent: restore the file, or remove it and run `k3s node forget` on a server"
    )]
    Password,
    /// The stored certificate does not fit its key.
    #[error("this node's own certificate cannot be used: {0}")]
    Identity(#[source] rustls::Error),
    /// Keys, certificates or kubeconfigs.
    #[error(transparent)]
    Pki(#[from] k3s_pki::Error),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl JoinError {
    /// Whether trying again cannot help: somebody has to change this node's configuration.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::OtherAuthority { .. } | Self::Password | Self::Pki(_) | Self::File(_) => true,
            // A refused name is let in when the server has forgotten it, as in k3s; a server may get another token or configuration.
            Self::NameTaken { .. }
            | Self::Credentials { .. }
            | Self::Config(_)
            | Self::Request(_)
            | Self::Answer { .. }
            | Self::Identity(_) => false,
        }
    }
}

/// A certificate that came, and the key that it is for.
struct Issued {
    files: CertificateFiles,
    certificate: Vec<u8>,
    /// Only from servers that make keys themselves, as k3s' oldest.
    key: Option<Vec<u8>>,
}

impl Applicant {
    /// Asks a server for everything, once, and puts it in place.
    pub(crate) async fn join(&self) -> Result<Joined, JoinError> {
        let pki = AgentPki::at(&self.dir);
        let joined_before = match &self.token {
            None => files::read(&pki.server_ca)?.map(Bytes::from),
            Some(_) => None,
        };
        let pinned = self.token.as_ref().and_then(|token| token.ca_hash.as_ref());
        let trust = trust::establish(&self.balancer, pinned, joined_before).await?;
        let api = ServerApi::new(&self.balancer, &trust, Identity::load(&pki.client_kubelet), self.token.as_ref())?;

        let answer = api.config().await.map_err(|error| self.refused(error))?;
        let config = ClusterConfig::parse(&answer)?;
        let (client_ca, server_ca) = (api.client_ca().await?, api.server_ca().await?);
        for (what, authority) in [("client-ca.crt", &client_ca), ("server-ca.crt", &server_ca)] {
            Certificate::first_of(authority).map_err(|why| JoinError::Answer { what, why: why.to_string() })?;
        }
        files::create_directory(&self.dir, 0o700)?;
        let issued = self.certificates(&api, &pki).await?;

        files::write(&pki.client_ca, &client_ca, PRIVATE)?;
        files::write(&pki.server_ca, &server_ca, PRIVATE)?;
        for Issued { files: place, certificate, key } in issued {
            if let Some(key) = key {
                files::write(&place.key, &key, PRIVATE)?;
            }
            files::write(&place.certificate, &certificate, PRIVATE)?;
        }
        pki.write_kubeconfigs(&self.apiserver)?;
        self.cache().store(&self.name, &answer)?;
        info!(server = %self.server, node = self.name, "Joined the cluster.");
        let api = ServerApi::new(&self.balancer, &trust, Identity::load(&pki.client_kubelet), self.token.as_ref())?;
        Ok(Joined { config, api })
    }

    /// The configuration of an earlier join, if everything is there that the node needs to come up by itself.
    pub(crate) fn remembered(&self) -> Result<Option<ClusterConfig>, JoinError> {
        let pki = AgentPki::at(&self.dir);
        let own = files::read(&pki.client_kubelet.certificate)?;
        let own = own.and_then(|pem| Certificate::first_of(&pem).ok());
        let is_ours = own.is_some_and(|own| own.common_name.as_deref() == Some(&format!("system:node:{}", self.name)));
        let all_there = [
            &pki.client_ca,
            &pki.server_ca,
            &pki.serving_kubelet.certificate,
            &pki.serving_kubelet.key,
            &pki.client_kubelet.key,
            &pki.client_kube_proxy.certificate,
            &pki.client_k3s_controller.certificate,
        ]
        .into_iter()
        .all(|path| path.is_file());
        if !(is_ours && all_there) {
            return Ok(None);
        }
        let Some(config) = self.cache().load(&self.name)? else { return Ok(None) };
        // Another load balancer port, perhaps.
        pki.write_kubeconfigs(&self.apiserver)?;
        Ok(Some(config))
    }

    fn cache(&self) -> ClusterCache {
        ClusterCache::new(self.dir.join("cluster.json"))
    }

    async fn certificates(&self, api: &ServerApi, pki: &AgentPki) -> Result<Vec<Issued>, JoinError> {
        let all: Vec<IpAddr> = self.ips.iter().chain(&self.external_ips).copied().collect();
        let headers = |ips: &[IpAddr]| node_headers(&self.name, self.password.expose(), ips);
        let mut issued = Vec::new();
        for (asked, place, headers) in [
            (Asked::ServingKubelet, &pki.serving_kubelet, headers(&all)?),
            (Asked::ClientKubelet, &pki.client_kubelet, headers(&self.ips)?),
            (Asked::ClientKubeProxy, &pki.client_kube_proxy, HeaderMap::new()),
            (Asked::ClientK3sController, &pki.client_k3s_controller, HeaderMap::new()),
        ] {
            let key = PrivateKey::load_or_generate(&place.key)?;
            let answer = api.certificate(asked, &headers, key.request()?).await;
            let answer = answer.map_err(|error| match error.status() {
                Some(StatusCode::FORBIDDEN) if !headers.is_empty() => {
                    JoinError::NameTaken { server: self.server.clone(), name: self.name.clone() }
                }
                _ => self.refused(error),
            })?;
            issued.push(Issued::of(place, &answer, &key)?);
        }
        Ok(issued)
    }

    fn refused(&self, error: RequestError) -> JoinError {
        match error.status() {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                JoinError::Credentials { server: self.server.clone() }
            }
            _ => error.into(),
        }
    }
}

impl Issued {
    /// Takes a server's answer apart: certificates, and a private key where the server made one in place of ours.
    fn of(place: &CertificateFiles, answer: &[u8], own: &PrivateKey) -> Result<Self, JoinError> {
        const WHAT: &str = "certificate";
        let unusable = |why: String| JoinError::Answer { what: WHAT, why };
        let text = std::str::from_utf8(answer).map_err(|error| unusable(error.to_string()))?;
        // The server appends it.
        let at = text.find("PRIVATE KEY-----").and_then(|end| text[..end].rfind("-----BEGIN"));
        let (certificate, key) = at.map_or((text, None), |at| (&text[..at], Some(&text[at..])));
        let theirs =
            key.map(|key| PrivateKey::from_pem(key.as_bytes()).ok_or_else(|| unusable("its key is none".into())));
        let public = match theirs.transpose()? {
            Some(key) => key.public().clone(),
            None => own.public().clone(),
        };
        let found = Certificate::first_of(certificate.as_bytes()).map_err(|why| unusable(why.to_string()))?;
        if found.public_key != public {
            return Err(unusable("it is for another key".into()));
        }
        Ok(Self { files: place.clone(), certificate: certificate.into(), key: key.map(Into::into) })
    }
}
