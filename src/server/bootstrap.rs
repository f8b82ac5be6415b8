//! What has to be there before the first program starts: a socket, certificates, tokens, kubeconfigs.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use k3s_components::Paths;
use k3s_config::{args::ComponentArgs, secret::Secret, server::ServerConfig};
use k3s_identity::{NodeFiles, Password, TokenFiles};
use k3s_pki::{CurrentCertificate, FrontCertificate, ServerPki, TlsPolicy};
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    Error,
    agreement::SharedSettings,
    bootstrap_data::{self, Found, Precedence},
    certificates::Certificates,
    cluster_store::ClusterStore,
    host::Host,
    lost_datastore,
    node_passwords::OwnNode,
};

/// The sockets that are a server's own from its start to its end.
pub(crate) struct Sockets {
    pub(crate) front: TcpListener,
    /// Of the load balancer in front of other servers' kube-apiservers, where this one runs none.
    pub(crate) balancer: Option<TcpListener>,
}

/// Binds them; that kube-apiserver's port is free is checked with it.
pub(crate) async fn listen(config: &ServerConfig) -> Result<Sockets, Error> {
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
    };
    let beside = SocketAddr::from((Ipv4Addr::LOCALHOST, config.apiserver_port()));
    let beside = match bind(beside).await {
        Err(Error::Listen { address, source }) if config.disabled.apiserver => {
            return Err(k3s_agent::Error::Listen { address, source }.into());
        }
        bound => bound?,
    };
    let balancer = config.disabled.apiserver.then_some(beside);
    Ok(Sockets { front: bind((config.bind_address, config.https_listen_port).into()).await?, balancer })
}

/// What the datastore knows of the cluster, and the token that goes with it.
pub(crate) struct Adopted {
    /// `None` if the cluster is a new one.
    pub(crate) found: Option<Found>,
    /// As given or stored; a random one for a new cluster that was given none.
    pub(crate) token: Password,
}

/// Writes what the datastore knows of the cluster and this disk does not: a server is made anew from the datastore and the token.
/// A token that does not fit and settings that are not the cluster's are refused here, before anything is written. Where other servers may set up the cluster of a new datastore
/// too, it is settled which one does.
pub(crate) async fn adopt(
    config: &ServerConfig,
    paths: &Paths,
    store: &ClusterStore,
    shared: Option<&SharedSettings<'_>>,
) -> Result<Adopted, Error> {
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
    if let Some(shared) = shared {
        shared.check().await?;
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
    certificates: &Certificates,
    token: &Password,
) -> Result<Credentials, Error> {
    let pki = certificates.ensure(SystemTime::now())?;
    let tokens = TokenFiles::ensure(
        &paths.server(),
        Some(token.expose()),
        config.agent_token.as_ref().map(Secret::expose),
        pki.server_ca.bundle(),
    )?;
    info!(path = %tokens.path.display(), "Other nodes join with the token in this file.");
    certificates.write_kubeconfig(&pki)?;
    info!(path = %config.kubeconfig.path.display(), "The administrator's kubeconfig is in place.");
    let token = tokens.server.password().expect("a server's own token is made of a password").clone();
    Ok(Credentials { pki, token })
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
