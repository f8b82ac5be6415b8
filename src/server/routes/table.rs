//! Which paths there are, who may ask for them, and how.

use http::Method;

use super::caller::Group;

/// A path that is answered here.
#[derive(Debug)]
pub(crate) struct Route {
    pub(super) path: &'static str,
    pub(super) layer: Layer,
    /// None: any.
    pub(super) methods: &'static [Method],
    pub(super) answer: Answer,
}

/// Who a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Everybody.
    Public,
    /// Other servers, and commands on servers.
    Servers,
    /// Nodes that join or have joined; so many requests at once and no more.
    Nodes,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ping,
    Authority,
    StaticFile,
    EncryptionStatus,
    EncryptionConfig,
    ReplaceAuthorities,
    ServerBootstrap,
    RotateToken,
    Certificate(Wanted),
    ClientCa,
    ServerCa,
    ApiServers,
    Config,
    Ready,
}

/// The certificates that nodes ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    ServingKubelet,
    ClientKubelet,
    ClientKubeProxy,
    ClientK3sController,
}

impl Layer {
    /// The groups that may pass; none for [`Self::Public`], where nobody is asked.
    pub(super) fn groups(self) -> &'static [Group] {
        match self {
            Self::Public => &[],
            Self::Servers => &[Group::Server],
            Self::Nodes => &[Group::Agent, Group::Nodes, Group::Bootstrappers],
        }
    }
}

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
const ANY: &[Method] = &[];

static STATIC: Route = route("/static/", Layer::Public, READ, Answer::StaticFile);

static ROUTES: [Route; 16] = [
    route("/ping", Layer::Public, ANY, Answer::Ping),
    route("/cacerts", Layer::Public, ANY, Answer::Authority),
    route("/v1-k3s/encrypt/status", Layer::Servers, READ, Answer::EncryptionStatus),
    route("/v1-k3s/encrypt/config", Layer::Servers, PUT, Answer::EncryptionConfig),
    route("/v1-k3s/cert/cacerts", Layer::Servers, PUT, Answer::ReplaceAuthorities),
    route("/v1-k3s/server-bootstrap", Layer::Servers, READ, Answer::ServerBootstrap),
    route("/v1-k3s/token", Layer::Servers, PUT, Answer::RotateToken),
    route("/v1-k3s/serving-kubelet.crt", Layer::Nodes, SIGN, Answer::Certificate(Wanted::ServingKubelet)),
    route("/v1-k3s/client-kubelet.crt", Layer::Nodes, SIGN, Answer::Certificate(Wanted::ClientKubelet)),
    route("/v1-k3s/client-kube-proxy.crt", Layer::Nodes, SIGN, Answer::Certificate(Wanted::ClientKubeProxy)),
    route("/v1-k3s/client-k3s-controller.crt", Layer::Nodes, SIGN, Answer::Certificate(Wanted::ClientK3sController)),
    route("/v1-k3s/client-ca.crt", Layer::Nodes, READ, Answer::ClientCa),
    route("/v1-k3s/server-ca.crt", Layer::Nodes, READ, Answer::ServerCa),
    route("/v1-k3s/apiservers", Layer::Nodes, READ, Answer::ApiServers),
    route("/v1-k3s/config", Layer::Nodes, READ, Answer::Config),
    route("/v1-k3s/readyz", Layer::Nodes, READ, Answer::Ready),
];

const fn route(path: &'static str, layer: Layer, methods: &'static [Method], answer: Answer) -> Route {
    Route { path, layer, methods, answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_it_is_byte_by_byte() {
        assert_eq!(Route::find("/v1-k3s/config").unwrap().answer, Answer::Config);
        assert_eq!(Route::find("/static/charts/a.tgz").unwrap().answer, Answer::StaticFile);
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
