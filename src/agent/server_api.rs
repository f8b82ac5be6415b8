//! What an agent asks of a server: `/v1-k3s/…`.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use k3s_balancer::{Address, Balancer};
use k3s_identity::{Credentials, Token};
use k3s_supervisor_api::{CertificateKind, NODE_IP, NODE_NAME, NODE_PASSWORD, RequestError, basic, bearer, paths};
use tracing::info;

use crate::{
    https::{Https, Patience},
    join_error::JoinError,
    trust::{Identity, Trust},
};

/// The account that agents log in as, whatever their token says.
const USER: &str = "node";

/// A server's supervisor API, with this node's credentials.
#[derive(Clone)]
pub(crate) struct ServerApi {
    /// With the certificate of an earlier join, where there is one.
    certified: Option<Https>,
    anonymous: Https,
    login: Option<HeaderValue>,
}

impl ServerApi {
    pub(crate) fn new(
        balancer: &Balancer,
        patience: &Patience,
        trust: &Trust,
        identity: Option<Identity>,
        token: Option<&Token>,
    ) -> Result<Self, JoinError> {
        let https = |identity| Ok::<_, JoinError>(Https::new(balancer.clone(), trust.tls(identity)?, patience.clone()));
        Ok(Self {
            certified: identity.map(|identity| https(Some(identity))).transpose()?,
            anonymous: https(None)?,
            login: token.map(login),
        })
    }

    /// The cluster's configuration, JSON.
    pub(crate) async fn config(&self) -> Result<Bytes, RequestError> {
        self.get(paths::CONFIG).await
    }

    /// What checks clients of kubelet, PEM.
    pub(crate) async fn client_ca(&self) -> Result<Bytes, RequestError> {
        self.get(paths::CLIENT_CA).await
    }

    /// What checks servers, PEM.
    pub(crate) async fn server_ca(&self) -> Result<Bytes, RequestError> {
        self.get(paths::SERVER_CA).await
    }

    /// Where the servers are; empty where the server does not know yet.
    pub(crate) async fn servers(&self) -> Result<Vec<Address>, RequestError> {
        let listed: Vec<String> = serde_json::from_slice(&self.get(paths::APISERVERS).await?).unwrap_or_default();
        Ok(listed.iter().filter_map(|address| address.parse().ok()).collect())
    }

    /// A certificate for the key of a DER-encoded request, PEM. `headers` say which node asks.
    pub(crate) async fn certificate(
        &self,
        kind: CertificateKind,
        headers: &HeaderMap,
        request: Vec<u8>,
    ) -> Result<Bytes, RequestError> {
        self.call(Method::POST, kind.path(), headers, request.into()).await
    }

    async fn get(&self, path: &str) -> Result<Bytes, RequestError> {
        self.call(Method::GET, path, &HeaderMap::new(), Bytes::new()).await
    }

    async fn call(&self, method: Method, path: &str, headers: &HeaderMap, body: Bytes) -> Result<Bytes, RequestError> {
        let request = || {
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = path.parse().expect("the paths are our own");
            request.headers_mut().extend(headers.clone());
            request.headers_mut().extend(self.login.clone().map(|login| (header::AUTHORIZATION, login)));
            request
        };
        let Some(certified) = &self.certified else { return self.anonymous.send(request()).await };
        let answer = certified.send(request()).await;
        // The node's object is gone, or its certificate has ended: the token still stands for it.
        if self.login.is_some() && answer.as_ref().is_err_and(|error| error.status() == Some(StatusCode::UNAUTHORIZED))
        {
            info!(path, "The server does not take this node's certificate; trying the token.");
            return self.anonymous.send(request()).await;
        }
        answer
    }
}

/// Headers by which a node says who it is.
pub(crate) fn node_headers(name: &str, password: &str, ips: &[std::net::IpAddr]) -> Result<HeaderMap, JoinError> {
    let ips = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut headers = HeaderMap::new();
    for (key, value, sensitive) in
        [(NODE_NAME, name, false), (NODE_PASSWORD, password, true), (NODE_IP, ips.as_str(), false)]
    {
        let mut value = HeaderValue::from_str(value).map_err(|_| JoinError::Password)?;
        value.set_sensitive(sensitive);
        headers.insert(key, value);
    }
    Ok(headers)
}

fn login(token: &Token) -> HeaderValue {
    match &token.credentials {
        Credentials::Basic { password, .. } => basic(USER, password.expose()),
        Credentials::Bootstrap { token } => bearer(&token.to_string()).expect("a bootstrap token is ASCII"),
    }
}
