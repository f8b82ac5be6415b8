//! Which paths there are, who may ask for them, and how.

use http::Method;
use k3s_supervisor_api::{CertificateKind, paths};

use crate::caller::Group;

/// A path that is answered here.
#[derive(Debug)]
pub(crate) struct Route {
    path: &'static str,
    pub(super) access: AccessPolicy,
}

/// Who may ask, how, and for what.
#[derive(Debug)]
pub(super) enum AccessPolicy {
    /// Everybody, by any method.
    Open(Open),
    /// Other servers, and commands on servers.
    Servers(&'static [Method], ForServers),
    /// Nodes that join or have joined; so many at once and no more.
    Nodes(&'static [Method], ForNodes),
}

/// What everybody may see.
#[derive(Debug, Clone, Copy)]
pub(super) enum Open {
    Ping,
    Authority,
    StaticFile,
}

/// What servers ask each other.
#[derive(Debug, Clone, Copy)]
pub(super) enum ForServers {
    EncryptionStatus,
    EncryptionConfig,
    ReplaceAuthorities,
    Bootstrap,
    EtcdMembers,
    RotateToken,
}

/// What nodes ask.
#[derive(Debug, Clone, Copy)]
pub(super) enum ForNodes {
    Certificate(CertificateKind),
    ClientCa,
    ServerCa,
    ApiServers,
    Config,
    Ready,
}

/// Whom the access of servers opens for.
pub(super) const SERVERS: &[Group] = &[Group::Server];
/// Whom the access of nodes opens for. Servers are none: their own nodes come with nodes' credentials.
pub(super) const NODES: &[Group] = &[Group::Agent, Group::Nodes, Group::Bootstrappers];

impl Route {
    /// The route of a path, compared byte by byte as it came: `//v1-k3s/…`, `/v1-k3s/%63onfig` and their like are paths of
    /// kube-apiserver's, which knows none of them.
    pub(crate) fn find(path: &str) -> Option<&'static Self> {
        if path.starts_with(STATIC.path) {
            return Some(&STATIC);
        }
        ROUTES.iter().find(|route| route.path == path)
    }

    /// What its paths are, or begin with.
    pub(crate) fn path(&self) -> &'static str {
        self.path
    }
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
/// Releases of k3s from before signing requests read certificates; all others post a request.
const SIGN: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
const PUT: &[Method] = &[Method::PUT];

static STATIC: Route = route(paths::STATIC, AccessPolicy::Open(Open::StaticFile));

static ROUTES: [Route; 17] = [
    route(paths::PING, AccessPolicy::Open(Open::Ping)),
    route(paths::CACERTS, AccessPolicy::Open(Open::Authority)),
    route(paths::ENCRYPTION_STATUS, AccessPolicy::Servers(READ, ForServers::EncryptionStatus)),
    route(paths::ENCRYPTION_CONFIG, AccessPolicy::Servers(PUT, ForServers::EncryptionConfig)),
    route(paths::AUTHORITIES, AccessPolicy::Servers(PUT, ForServers::ReplaceAuthorities)),
    route(paths::SERVER_BOOTSTRAP, AccessPolicy::Servers(READ, ForServers::Bootstrap)),
    route(paths::DB_INFO, AccessPolicy::Servers(READ, ForServers::EtcdMembers)),
    route(paths::TOKEN, AccessPolicy::Servers(PUT, ForServers::RotateToken)),
    certificate(CertificateKind::ServingKubelet),
    certificate(CertificateKind::ClientKubelet),
    certificate(CertificateKind::ClientKubeProxy),
    certificate(CertificateKind::ClientK3sController),
    route(paths::CLIENT_CA, AccessPolicy::Nodes(READ, ForNodes::ClientCa)),
    route(paths::SERVER_CA, AccessPolicy::Nodes(READ, ForNodes::ServerCa)),
    route(paths::APISERVERS, AccessPolicy::Nodes(READ, ForNodes::ApiServers)),
    route(paths::CONFIG, AccessPolicy::Nodes(READ, ForNodes::Config)),
    route(paths::READYZ, AccessPolicy::Nodes(READ, ForNodes::Ready)),
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
