//! Which paths there are, byte by byte, who may ask for them, and how.

use http::Method;

use crate::CertificateKind;

/// Whether the server lives; for everybody.
pub const PING: &str = "/ping";
/// What servers are checked by, PEM; for everybody: a node compares it with its token.
pub const CACERTS: &str = "/cacerts";
/// Files of `<data>/server/static`; for everybody.
pub const STATIC: &str = "/static/";

/// What a node has to know of its cluster: a [`ClusterDocument`](crate::ClusterDocument).
pub const CONFIG: &str = "/v1-k3s/config";
/// Where the API is reached: a list of `address:port`.
pub const APISERVERS: &str = "/v1-k3s/apiservers";
/// Whether the server can let nodes in.
pub const READYZ: &str = "/v1-k3s/readyz";
/// What checks clients of kubelet, PEM.
pub const CLIENT_CA: &str = "/v1-k3s/client-ca.crt";
/// What checks servers, PEM.
pub const SERVER_CA: &str = "/v1-k3s/server-ca.crt";

/// What all servers have in common: a [`BootstrapData`](crate::BootstrapData).
pub const SERVER_BOOTSTRAP: &str = "/v1-k3s/server-bootstrap";
/// Takes a [`TokenRotation`](crate::TokenRotation).
pub const TOKEN: &str = "/v1-k3s/token";
/// Takes other authorities: a [`BootstrapData`](crate::BootstrapData).
pub const AUTHORITIES: &str = "/v1-k3s/cert/cacerts";
/// How Secrets are encrypted: an [`EncryptionStatus`](crate::EncryptionStatus).
pub const ENCRYPTION_STATUS: &str = "/v1-k3s/encrypt/status";
/// Takes another way to encrypt them: an [`EncryptionRequest`](crate::EncryptionRequest).
pub const ENCRYPTION_CONFIG: &str = "/v1-k3s/encrypt/config";

/// The members of the cluster's etcd: a [`MembersDocument`](crate::MembersDocument).
pub const DB_INFO: &str = "/db/info";

/// A path that a server answers itself.
#[derive(Debug)]
pub struct Route {
    path: &'static str,
    /// Who may ask.
    pub access: AccessPolicy,
}

/// Who may ask, how, and for what.
#[derive(Debug)]
pub enum AccessPolicy {
    /// Everybody, by any method.
    Open(Open),
    /// Other servers, and commands on servers.
    Servers(&'static [Method], ForServers),
    /// Nodes that join or have joined; so many at once and no more.
    Nodes(&'static [Method], ForNodes),
}

/// What everybody may see.
#[derive(Debug, Clone, Copy)]
pub enum Open {
    /// [`PING`]
    Ping,
    /// [`CACERTS`]
    Authority,
    /// [`STATIC`]
    StaticFile,
}

/// What servers ask each other.
#[derive(Debug, Clone, Copy)]
pub enum ForServers {
    /// [`ENCRYPTION_STATUS`]
    EncryptionStatus,
    /// [`ENCRYPTION_CONFIG`]
    EncryptionConfig,
    /// [`AUTHORITIES`]
    ReplaceAuthorities,
    /// [`SERVER_BOOTSTRAP`]
    Bootstrap,
    /// [`DB_INFO`]
    EtcdMembers,
    /// [`TOKEN`]
    RotateToken,
}

/// What nodes ask.
#[derive(Debug, Clone, Copy)]
pub enum ForNodes {
    /// [`CertificateKind::path`]
    Certificate(CertificateKind),
    /// [`CLIENT_CA`]
    ClientCa,
    /// [`SERVER_CA`]
    ServerCa,
    /// [`APISERVERS`]
    ApiServers,
    /// [`CONFIG`]
    Config,
    /// [`READYZ`]
    Ready,
}

impl Route {
    /// The route of a path, compared byte by byte as it came: `//v1-k3s/…`, `/v1-k3s/%63onfig` and their like are paths of
    /// kube-apiserver's, which knows none of them.
    pub fn find(path: &str) -> Option<&'static Self> {
        if path.starts_with(STATIC) {
            return Some(&STATIC_FILES);
        }
        ROUTES.iter().find(|route| route.path == path)
    }

    /// What its paths are, or begin with.
    pub fn path(&self) -> &'static str {
        self.path
    }
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
/// Releases of k3s from before signing requests read certificates; all others post a request.
const SIGN: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
const PUT: &[Method] = &[Method::PUT];

static STATIC_FILES: Route = route(STATIC, AccessPolicy::Open(Open::StaticFile));

static ROUTES: [Route; 17] = [
    route(PING, AccessPolicy::Open(Open::Ping)),
    route(CACERTS, AccessPolicy::Open(Open::Authority)),
    route(ENCRYPTION_STATUS, AccessPolicy::Servers(READ, ForServers::EncryptionStatus)),
    route(ENCRYPTION_CONFIG, AccessPolicy::Servers(PUT, ForServers::EncryptionConfig)),
    route(AUTHORITIES, AccessPolicy::Servers(PUT, ForServers::ReplaceAuthorities)),
    route(SERVER_BOOTSTRAP, AccessPolicy::Servers(READ, ForServers::Bootstrap)),
    route(DB_INFO, AccessPolicy::Servers(READ, ForServers::EtcdMembers)),
    route(TOKEN, AccessPolicy::Servers(PUT, ForServers::RotateToken)),
    certificate(CertificateKind::ServingKubelet),
    certificate(CertificateKind::ClientKubelet),
    certificate(CertificateKind::ClientKubeProxy),
    certificate(CertificateKind::ClientK3sController),
    route(CLIENT_CA, AccessPolicy::Nodes(READ, ForNodes::ClientCa)),
    route(SERVER_CA, AccessPolicy::Nodes(READ, ForNodes::ServerCa)),
    route(APISERVERS, AccessPolicy::Nodes(READ, ForNodes::ApiServers)),
    route(CONFIG, AccessPolicy::Nodes(READ, ForNodes::Config)),
    route(READYZ, AccessPolicy::Nodes(READ, ForNodes::Ready)),
];

const fn certificate(kind: CertificateKind) -> Route {
    route(kind.path(), AccessPolicy::Nodes(SIGN, ForNodes::Certificate(kind)))
}

const fn route(path: &'static str, access: AccessPolicy) -> Route {
    Route { path, access }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_it_is_byte_by_byte() {
        assert_eq!(Route::find("/v1-k3s/config").unwrap().path(), "/v1-k3s/config");
        assert_eq!(Route::find("/static/charts/a.tgz").unwrap().path(), "/static/");
        for path in [
            "",
            "/",
            "/api",
            "/static",
            "/ping/",
            "/cacerts/x",
            "/v1-k3s",
            "/v1-k3s/",
            "/v1-k3s/config/",
            "//v1-k3s/config",
            "/v1-k3s//config",
            "/v1-k3s/./config",
            "/x/../v1-k3s/config",
            "/../v1-k3s/config",
            "/v1-k3s%2Fconfig",
            "/v1-k3s/%63onfig",
            "/V1-K3S/config",
            "/v1-k3sx/config",
        ] {
            assert!(Route::find(path).is_none(), "{path}");
        }
    }
}
