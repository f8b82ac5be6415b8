//! What has to be there before the first program starts: a socket, room, certificates, tokens, kubeconfigs.

use std::{
    fs::DirBuilder,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use k3s_components::Paths;
use k3s_config::{args::ComponentArgs, secret::Secret, server::ServerConfig};
use k3s_front::Upstream;
use k3s_identity::{NodeFiles, Password, TokenFiles};
use k3s_pki::{
    AgentPki, AgentRequest, ClientCa, CurrentCertificate, FrontCertificate, HostName, Lifetime, San, ServerPki,
    ServerRequest, TlsPolicy, UserKubeconfig,
};
use nix::sys::statvfs::statvfs;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::{
    Error,
    bootstrap_data::{self, Found, Precedence},
    cluster_store::ClusterStore,
    host::Host,
    lost_datastore,
    node_passwords::OwnNode,
};

/// Where kubectl and people look for the administrator's kubeconfig.
const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";

/// k3s' variable for how long certificates last.
const LIFETIME: &str = "CATTLE_NEW_SIGNED_CERT_EXPIRATION_DAYS";

/// Bytes that have to be free for a start: certificates, and the datastore's reserve twice.
const NEEDED: u64 = 64 << 20;

/// The front's socket; that kube-apiserver's port is free is checked with it.
pub(crate) async fn listen(config: &ServerConfig) -> Result<TcpListener, Error> {
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
    };
    drop(bind((Ipv4Addr::LOCALHOST, config.apiserver_port()).into()).await?);
    bind((config.bind_address, config.https_listen_port).into()).await
}

/// Refuses a disk that is as good as full, before half of what a server needs has been written to it.
pub(crate) fn check_room(paths: &Paths) -> Result<(), Error> {
    let dir = paths.server();
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::file(&dir))?;
    let disk = statvfs(&dir).map_err(|errno| Error::file(&dir)(errno.into()))?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    if free < NEEDED {
        return Err(Error::NoRoom { path: dir, free: free >> 20, needed: NEEDED >> 20 });
    }
    Ok(())
}

/// What the datastore knows of the cluster, and the token that goes with it.
pub(crate) struct Adopted {
    /// `None` if the cluster is a new one.
    pub(crate) found: Option<Found>,
    /// As given or stored; a random one for a new cluster that was given none.
    pub(crate) token: Password,
}

/// Writes what the datastore knows of the cluster and this disk does not: a server is made anew from the datastore and the token.
/// A token that does not fit is refused here, before anything is written. Where other servers may set up the cluster of a new datastore
/// too, it is settled which one does.
pub(crate) async fn adopt(config: &ServerConfig, paths: &Paths, store: &ClusterStore) -> Result<Adopted, Error> {
    let (server, client) = (paths.server(), store.client());
    let password = match &config.token {
        Some(given) => Some(Password::new(given.expose())),
        None => TokenFiles::password(&server)?,
    };
    // Older releases of k3s sealed by the whole text of the token.
    let token_file = k3s_files::read(&server.join("token"))?.unwrap_or_default();
    let whole = String::from_utf8_lossy(&token_file);
    let whole = Some(whole.trim()).filter(|text| !text.is_empty());
    let mut found = bootstrap_data::load(&client, password.as_ref(), whole).await?;
    if found.is_none() {
        lost_datastore::check_content(&config.datastore, &client, paths).await?;
    }
    let token = password.map_or_else(Password::random, Ok)?;
    if found.is_none() && config.datastore.is_shared() {
        found = bootstrap_data::acquire_init_lock(&client, &token).await?;
    }
    if let Some(found) = &found {
        bootstrap_data::reconcile(&found.data, &server, Precedence::Undecided)?;
    }
    // Data of k3s' first releases opens without a token, and brings one.
    let stored = if config.token.is_none() { TokenFiles::password(&server)? } else { None };
    Ok(Adopted { found, token: stored.unwrap_or(token) })
}

/// What a server proves itself with, and the token that seals what it stores of that.
pub(crate) struct Credentials {
    pub(crate) pki: ServerPki,
    pub(crate) token: Password,
}

/// Makes, keeps or renews everything that a server proves itself with.
pub(crate) fn credentials(
    config: &ServerConfig,
    paths: &Paths,
    host: &Host,
    token: &Password,
) -> Result<Credentials, Error> {
    let pki = certificates(config, paths, host, SystemTime::now())?;
    let tokens = TokenFiles::ensure(
        &paths.server(),
        Some(token.expose()),
        config.agent_token.as_ref().map(Secret::expose),
        pki.server_ca.bundle(),
    )?;
    info!(path = %tokens.path.display(), "Other nodes join with the token in this file.");
    administrator(config, &pki)?;
    info!(path = %config.kubeconfig.path.display(), "The administrator's kubeconfig is in place.");
    let token = tokens.server.password().expect("a server's own token is made of a password").clone();
    Ok(Credentials { pki, token })
}

/// Makes, keeps or renews the certificates of the server and of the node that it also is.
pub(crate) fn certificates(
    config: &ServerConfig,
    paths: &Paths,
    host: &Host,
    now: SystemTime,
) -> Result<ServerPki, Error> {
    let node_name = name(&host.name)?;
    let pki = ServerPki::ensure(
        &paths.server(),
        &ServerRequest {
            tls_sans: config.tls_sans.iter().map(|text| san(text)).collect::<Result<_, _>>()?,
            node_name: node_name.clone(),
            node_ips: host.ips.clone(),
            advertise_address: Some(host.advertised(config)),
            service_ip: config.network.kubernetes_service_ip(),
            cluster_domain: name(&config.network.cluster_domain)?,
            apiserver_port: config.apiserver_port(),
            lifetime: lifetime(),
            now,
        },
    )?;
    if let Some(node) = &config.node {
        AgentPki::ensure(
            &paths.agent(),
            &AgentRequest {
                node_name,
                node_ips: host.ips.iter().chain(&node.external_ips).copied().collect(),
                apiserver: pki.apiserver_url(),
                now,
            },
            &pki,
        )?;
    }
    Ok(pki)
}

/// Writes the administrator's kubeconfig, which holds its certificate.
pub(crate) fn administrator(config: &ServerConfig, pki: &ServerPki) -> Result<(), Error> {
    UserKubeconfig {
        path: &config.kubeconfig.path,
        default_path: Path::new(KUBECONFIG),
        mode: config.kubeconfig.mode,
        group: config.kubeconfig.group.as_deref(),
        front: (config.reached_at(), config.https_listen_port).into(),
    }
    .write(pki)?;
    Ok(())
}

/// The node that this server is, as it would have to prove itself; `None` without a node.
pub(crate) fn own_node(config: &ServerConfig, paths: &Paths, host: &Host) -> Result<Option<OwnNode>, Error> {
    if config.node.is_none() {
        return Ok(None);
    }
    let (files, legacy) = (NodeFiles::new(Path::new(k3s_agent::ETC)), paths.agent().join("node-password.txt"));
    let name = host.name.clone();
    if files.has_lost_password() && files.stored_password(&legacy)?.is_none() {
        // Written when the cluster knows it: until then each start finds that it is lost.
        return Ok(Some(OwnNode { name, password: Password::random()?, lost: Some(files) }));
    }
    Ok(Some(OwnNode { name, password: files.password(&legacy)?, lost: None }))
}

/// Which TLS clients may speak with this server.
pub(crate) fn tls_policy(kube_apiserver: &ComponentArgs) -> TlsPolicy {
    let asked = |name| kube_apiserver.value_of(name);
    TlsPolicy::new(asked("tls-min-version"), asked("tls-cipher-suites"))
}

/// What the front can show before the datastore is open: the certificate of its last run.
pub(crate) fn last_certificate(paths: &Paths) -> Option<Arc<CurrentCertificate>> {
    Some(Arc::new(CurrentCertificate::new(FrontCertificate::last(&paths.server())?.certified_key())))
}

/// What the front shows its clients, checks them by, and shows kube-apiserver.
pub(crate) struct FrontTls {
    pub(crate) certificate: Arc<CurrentCertificate>,
    pub(crate) client_ca: Arc<ClientCa>,
    pub(crate) upstream: Upstream,
}

/// As `pki` has it; the front's own certificate is made, kept or renewed.
pub(crate) fn front_tls(config: &ServerConfig, pki: &ServerPki, now: SystemTime) -> Result<FrontTls, Error> {
    let unusable = |path: &Path, why: String| Error::Certificate { path: path.to_path_buf(), why };
    let certificate = pki.front_certificate(&[], now)?.certified_key();
    let client_ca = ClientCa::new(pki.client_ca.bundle())
        .map_err(|error| unusable(&pki.client_ca.files().certificate, error.to_string()))?;
    let proxy = &pki.client_auth_proxy;
    let read = |path: &Path| k3s_files::read_existing(path);
    let proxy_certificate = CurrentCertificate::from_pem(&read(&proxy.certificate)?, &read(&proxy.key)?)
        .map_err(|error| unusable(&proxy.certificate, error.to_string()))?;
    let address = (Ipv4Addr::LOCALHOST, config.apiserver_port()).into();
    let upstream = Upstream::new(address, pki.server_ca.bundle(), Arc::new(proxy_certificate))
        .map_err(|error| unusable(&pki.server_ca.files().certificate, error.to_string()))?;
    let certificate = Arc::new(CurrentCertificate::new(certificate));
    Ok(FrontTls { certificate, client_ca: Arc::new(client_ca), upstream })
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
