//! The certificates of a server: which it has, for what names, and what is written with them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use k3s_components::Paths;
use k3s_config::server::{KubeconfigOutput, ServerConfig};
use k3s_front::Upstream;
use k3s_pki::{
    AgentPki, AgentRequest, ClientCa, CurrentCertificate, HostName, Lifetime, San, ServerPki, ServerRequest,
    UserKubeconfig,
};
use tracing::warn;

use crate::{Error, host::Host};

/// Where kubectl and people look for the administrator's kubeconfig.
const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";

/// k3s' variable for how long certificates last.
const LIFETIME: &str = "CATTLE_NEW_SIGNED_CERT_EXPIRATION_DAYS";

/// What a server's certificates are made for: the same at its start and at each renewal, but for its addresses.
#[derive(Clone)]
pub(crate) struct Certificates {
    paths: Paths,
    host: Host,
    node_name: HostName,
    /// Where the API is published, if not at the host's own address.
    published_at: Option<IpAddr>,
    tls_sans: Vec<San>,
    service_ip: IpAddr,
    cluster_domain: HostName,
    apiserver_port: u16,
    lifetime: Lifetime,
    /// The node's addresses for the outside; `None` without a node.
    node_external_ips: Option<Vec<IpAddr>>,
    kubeconfig: KubeconfigOutput,
    /// Where the administrator reaches the API from this host: the front, or the load balancer in front of other servers'.
    api: SocketAddr,
}

/// What the front shows its clients, checks them by, and shows kube-apiserver.
pub(crate) struct FrontTls {
    pub(crate) certificate: Arc<CurrentCertificate>,
    /// What that is valid for.
    pub(crate) names: BTreeSet<San>,
    pub(crate) client_ca: Arc<ClientCa>,
    pub(crate) upstream: Upstream,
}

impl Certificates {
    /// As `config` wants them for `host`.
    pub(crate) fn new(config: &ServerConfig, paths: &Paths, host: &Host) -> Result<Self, Error> {
        Ok(Self {
            paths: paths.clone(),
            host: host.clone(),
            node_name: name(&host.name)?,
            published_at: config.published_at(),
            tls_sans: config.tls_sans.iter().map(|text| san(text)).collect::<Result<_, _>>()?,
            service_ip: config.network.kubernetes_service_ip(),
            cluster_domain: name(&config.network.cluster_domain)?,
            apiserver_port: config.apiserver_port(),
            lifetime: lifetime(),
            node_external_ips: config.node.as_ref().map(|node| node.external_ips.clone()),
            kubeconfig: config.kubeconfig.clone(),
            api: match config.disabled.apiserver {
                true => (Ipv4Addr::LOCALHOST, config.apiserver_port()).into(),
                false => (config.reached_at(), config.https_listen_port).into(),
            },
        })
    }

    /// The same for a host that has moved to `ips`; it is reached by the addresses of before too.
    pub(crate) fn moved_to(&self, ips: &[IpAddr]) -> Self {
        Self { host: self.host.moved_to(ips), ..self.clone() }
    }

    /// Makes, keeps or renews those of the server and of the node that it also is.
    pub(crate) fn ensure(&self, now: SystemTime) -> Result<ServerPki, Error> {
        let pki = ServerPki::ensure(
            &self.paths.server(),
            &ServerRequest {
                tls_sans: self.tls_sans.clone(),
                node_name: self.node_name.clone(),
                node_ips: self.host.ips.clone(),
                advertise_address: Some(self.host.advertised(self.published_at)),
                service_ip: self.service_ip,
                cluster_domain: self.cluster_domain.clone(),
                apiserver_port: self.apiserver_port,
                lifetime: self.lifetime,
                now,
            },
        )?;
        if let Some(external_ips) = &self.node_external_ips {
            AgentPki::ensure(
                &self.paths.agent(),
                &AgentRequest {
                    node_name: self.node_name.clone(),
                    node_ips: self.host.ips.iter().chain(external_ips).copied().collect(),
                    apiserver: pki.apiserver_url(),
                    now,
                },
                &pki,
            )?;
        }
        Ok(pki)
    }

    /// Writes the administrator's kubeconfig, which holds its certificate.
    pub(crate) fn write_kubeconfig(&self, pki: &ServerPki) -> Result<(), Error> {
        UserKubeconfig {
            path: &self.kubeconfig.path,
            default_path: Path::new(KUBECONFIG),
            mode: self.kubeconfig.mode,
            group: self.kubeconfig.group.as_deref(),
            front: self.api,
        }
        .write(pki)?;
        Ok(())
    }

    /// What the front uses of `pki`; its own certificate is made, kept or renewed.
    pub(crate) fn front_tls(&self, pki: &ServerPki, now: SystemTime) -> Result<FrontTls, Error> {
        let unusable = |path: &Path, why: String| Error::Certificate { path: path.to_path_buf(), why };
        let front = pki.front_certificate(&[], now)?;
        let client_ca = ClientCa::new(pki.client_ca.bundle())
            .map_err(|error| unusable(&pki.client_ca.files().certificate, error.to_string()))?;
        let proxy = &pki.client_auth_proxy;
        let read = |path: &Path| k3s_files::read_existing(path);
        let proxy_certificate = CurrentCertificate::from_pem(&read(&proxy.certificate)?, &read(&proxy.key)?)
            .map_err(|error| unusable(&proxy.certificate, error.to_string()))?;
        let address = (Ipv4Addr::LOCALHOST, self.apiserver_port).into();
        let upstream = Upstream::new(address, pki.server_ca.bundle(), Arc::new(proxy_certificate))
            .map_err(|error| unusable(&pki.server_ca.files().certificate, error.to_string()))?;
        let certificate = Arc::new(CurrentCertificate::new(front.certified_key()));
        Ok(FrontTls { certificate, names: front.names().clone(), client_ca: Arc::new(client_ca), upstream })
    }
}

/// As k3s' variable says, in days; a year without it.
fn lifetime() -> Lifetime {
    let Ok(text) = std::env::var(LIFETIME) else { return Lifetime::default() };
    text.parse().map(Lifetime::of_days).unwrap_or_else(|_| {
        warn!("{LIFETIME} is not a number of days from 1 to 65535 and is not heeded: certificates last a year.");
        Lifetime::default()
    })
}

fn name(text: &str) -> Result<HostName, Error> {
    text.parse().map_err(|source| Error::Name { text: text.to_owned(), source: Box::new(source) })
}

fn san(text: &str) -> Result<San, Error> {
    text.parse().map_err(|source| Error::Name { text: text.to_owned(), source: Box::new(source) })
}
