//! What the server answers itself: `/cacerts`, `/ping`, `/static/*`, and the supervisor API that nodes join by.
//!
//! ```text
//! path ─► access (`supervisor-api/paths.rs`) ─► credentials (`authenticator.rs`) ─► method ─► a place (`in_flight.rs`) ─► answer
//!           none: kube-apiserver's                     401, 403                       405       429
//! ```

mod accounts;
mod authenticator;
mod bootstrap_tokens;
mod certificates;
mod connect;
mod guesses;
mod in_flight;
mod neighbours;
mod reserved;
mod static_files;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use k3s_balancer::Address;
use k3s_front::{Connection, Service};
use k3s_http::{Body, Status, empty, full};
use k3s_identity::Error as IdentityError;
use k3s_listener::Peer;
use k3s_pki::ServerPki;
use k3s_supervisor_api::{
    BootstrapData, EncryptionRequest, Replacement, TokenRotation,
    paths::{AccessPolicy, ForNodes, ForServers, Open, Route},
};
use kube::Client;
use serde_json::Value;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::{
    EncryptionError, Error,
    admin_client::AdminClient,
    authorities::{self, ReplaceError},
    bootstrap_data,
    caller::{Caller, Group},
    encryption::SecretsEncryption,
    etcd::Membership,
    node_dialer::NodeDialer,
    node_passwords::NodePasswords,
    token::ServerToken,
};
use authenticator::Authenticator;
use certificates::{CertificateRequest, Certificates};
use in_flight::InFlight;
use neighbours::Neighbours;
use static_files::StaticFiles;

pub(crate) use reserved::Reserved;

/// Whom the access of servers opens for.
const SERVERS: &[Group] = &[Group::Server];
/// Whom the access of nodes opens for. Servers are none: their own nodes come with nodes' credentials.
const NODES: &[Group] = &[Group::Agent, Group::Nodes, Group::Bootstrappers];

/// The longest body that is read: a signing request has some hundred bytes.
const LONGEST_BODY: usize = 64 << 10;
/// The longest map of files: five authorities with chains of RSA certificates have some ten thousand bytes each.
const LONGEST_AUTHORITIES: usize = 512 << 10;
/// How long a body may take to come.
const BODY: Duration = Duration::from_secs(10);
/// How long one that is not asked for may.
const IGNORED_BODY: Duration = Duration::from_secs(1);

/// What the routes serve.
#[derive(Debug)]
pub struct Cluster {
    /// `<data>/server`
    pub server_dir: PathBuf,
    /// The package's charts, which are served at `/static/charts` where `<data>/server/static/charts` has none of that name.
    pub charts: Option<PathBuf>,
    /// Signs nodes' certificates.
    pub pki: Arc<ServerPki>,
    /// The API.
    pub admin_client: AdminClient,
    /// Checks nodes' names.
    pub node_passwords: Arc<NodePasswords>,
    /// What no node can have.
    pub(crate) reserved: Reserved,
    /// The server token.
    pub token: Arc<ServerToken>,
    /// How Secrets are encrypted.
    pub(crate) encryption: Arc<SecretsEncryption>,
    /// Reaches nodes: for kube-apiserver's CONNECT.
    pub dialer: NodeDialer,
    /// Whether nodes are to hold tunnels to this server.
    pub(crate) takes_nodes: watch::Receiver<bool>,
    /// The cluster's own etcd, where it has one: other servers join it.
    pub(crate) etcd: Option<Arc<Membership>>,
    /// Where kube-apiservers are, for a server that runs none.
    pub(crate) others: Option<watch::Receiver<BTreeSet<Address>>>,
    /// `/v1-k3s/config`
    pub config: Value,
}

/// The routes, with what they serve.
#[derive(Debug)]
pub struct Routes {
    server_dir: PathBuf,
    static_files: StaticFiles,
    authenticator: Authenticator,
    in_flight: InFlight,
    certificates: Certificates,
    admin_client: AdminClient,
    token: Arc<ServerToken>,
    encryption: Arc<SecretsEncryption>,
    dialer: NodeDialer,
    takes_nodes: watch::Receiver<bool>,
    etcd: Option<Arc<Membership>>,
    others: Option<watch::Receiver<BTreeSet<Address>>>,
    config: Bytes,
}

impl Service for Routes {
    fn answer<'a>(
        &'a self,
        request: &'a mut Request<Incoming>,
        connection: Connection<'a>,
    ) -> Option<BoxFuture<'a, Response<Body>>> {
        let span = |request: &Request<Incoming>| {
            let path = request.uri().path();
            info_span!("request", client = %connection.peer.address, method = %request.method(), path)
        };
        if request.method() == Method::CONNECT {
            let span = span(request);
            let connected = self.connect(request, connection).map(|answer| answer.unwrap_or_else(Into::into));
            return Some(connected.instrument(span).boxed());
        }
        if request.uri().path() == k3s_tunnel::PATH {
            let span = span(request);
            let opened = self.open_tunnel(request, connection).map(|answer| answer.unwrap_or_else(Into::into));
            return Some(opened.instrument(span).boxed());
        }
        let route = Route::find(request.uri().path())?;
        let span = span(request);
        Some(self.answer_route(route, request, connection.peer).instrument(span).boxed())
    }
}

impl Routes {
    /// Serves this cluster.
    pub fn new(cluster: Cluster) -> Self {
        let Cluster {
            server_dir,
            charts,
            pki,
            admin_client,
            node_passwords,
            reserved,
            token,
            encryption,
            dialer,
            takes_nodes,
            etcd,
            others,
            config,
        } = cluster;
        Self {
            static_files: StaticFiles::new(server_dir.join("static"), charts),
            authenticator: Authenticator::new(server_dir.join("cred/passwd"), admin_client.clone()),
            in_flight: InFlight::new(),
            certificates: Certificates {
                pki,
                node_passwords,
                reserved,
                neighbours: Neighbours::new(admin_client.clone()),
            },
            admin_client,
            token,
            encryption,
            dialer,
            takes_nodes,
            etcd,
            others,
            config: line(&config),
            server_dir,
        }
    }

    /// Who asks, if it is in one of `groups`.
    async fn admit(&self, groups: &[Group], headers: &HeaderMap, peer: &Peer) -> Result<Caller, Status> {
        self.authenticator.admit(groups, headers, peer).await
    }

    async fn answer_route(&self, route: &Route, request: &mut Request<Incoming>, peer: &Peer) -> Response<Body> {
        match self.admit_and_answer(route, request, peer).await {
            Ok(response) => response,
            Err(status) => {
                ignore(request.body_mut()).await;
                status.into()
            }
        }
    }

    async fn admit_and_answer(
        &self,
        route: &Route,
        request: &mut Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<Body>, Status> {
        match &route.access {
            AccessPolicy::Open(open) => self.answer_everybody(*open, route, request, peer).await,
            AccessPolicy::Servers(methods, wanted) => {
                self.admit(SERVERS, request.headers(), peer).await?;
                allow(methods, request.method())?;
                self.answer_server(*wanted, request, peer).await
            }
            AccessPolicy::Nodes(methods, wanted) => {
                let caller = self.admit(NODES, request.headers(), peer).await?;
                allow(methods, request.method())?;
                let _place = self.in_flight.begin(request.method())?;
                self.answer_node(*wanted, &caller, request, peer).await
            }
        }
    }

    async fn answer_everybody(
        &self,
        open: Open,
        route: &Route,
        request: &Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<Body>, Status> {
        match open {
            Open::Ping => Ok(text("pong")),
            // The file as it is: agents compare its digest with the one in their token.
            Open::Authority => self.file("tls/server-ca.crt").await,
            Open::StaticFile => {
                let path = request.uri().path().strip_prefix(route.path()).unwrap_or_default();
                Ok(self.static_files.answer(request.method(), path, peer.address.ip()).await)
            }
        }
    }

    async fn answer_server(
        &self,
        route: ForServers,
        request: &mut Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<Body>, Status> {
        match route {
            ForServers::Bootstrap => {
                self.etcd(peer)?;
                self.bootstrap_data().await
            }
            ForServers::EtcdMembers => self.etcd_members(self.etcd(peer)?).await,
            ForServers::EncryptionStatus => self.encryption_status().await,
            ForServers::EncryptionConfig => {
                self.encryption.check_place().map_err(|error| refused_encryption(&error))?;
                let client = self.admin_client.client()?;
                self.change_encryption(&client, read(request.body_mut(), LONGEST_BODY).await?).await
            }
            ForServers::RotateToken => self.rotate_token(read(request.body_mut(), LONGEST_BODY).await?).await,
            ForServers::ReplaceAuthorities => {
                let replacement = Replacement::of_query(request.uri().query());
                self.replace_authorities(read(request.body_mut(), LONGEST_AUTHORITIES).await?, replacement).await
            }
        }
    }

    async fn answer_node(
        &self,
        route: ForNodes,
        caller: &Caller,
        request: &mut Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<Body>, Status> {
        match route {
            ForNodes::Certificate(kind) => {
                let body = read(request.body_mut(), LONGEST_BODY).await?;
                let (from, method, headers) = (peer.address.ip(), request.method(), request.headers());
                let request = CertificateRequest { caller, from, method, headers, body: &body };
                self.certificates.answer(kind, request).await.map(text)
            }
            ForNodes::ClientCa => self.file("tls/client-ca.crt").await,
            ForNodes::ServerCa => self.file("tls/server-ca.crt").await,
            ForNodes::Config => Ok(document(self.config.clone())),
            ForNodes::ApiServers => {
                let addresses = match &self.others {
                    Some(others) => others.borrow().iter().map(ToString::to_string).collect(),
                    None => self.certificates.neighbours.api_servers().iter().map(ToString::to_string).collect(),
                };
                Ok(document(line(&addresses)))
            }
            ForNodes::Ready => self.admin_client.client().map(|_| text("ok")),
        }
    }

    async fn file(&self, name: &str) -> Result<Response<Body>, Status> {
        let path = self.server_dir.join(name);
        let read = {
            let path = path.clone();
            spawn_blocking(move || k3s_files::read_existing(&path)).await
        };
        match read.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string())) {
            Ok(bytes) => Ok(text(bytes)),
            Err(error) => {
                error!(path = %path.display(), %error, "Cannot read a certificate authority that nodes ask for.");
                Err(Status::internal("the server cannot read its certificate authority; its log says why"))
            }
        }
    }

    /// The etcd that another server may join; 400 as k3s' where there is none.
    fn etcd(&self, peer: &Peer) -> Result<&Membership, Status> {
        self.etcd.as_deref().ok_or_else(|| {
            warn!(peer = %peer.address, "A server asks to join, and there is no etcd that it could join.");
            Status::bad_request("etcd disabled")
        })
    }

    /// As this server has it on the disk: what members of etcd believe each other by at this moment.
    async fn bootstrap_data(&self) -> Result<Response<Body>, Status> {
        let server_dir = self.server_dir.clone();
        match spawn_blocking(move || bootstrap_data::from_disk(&server_dir)).await {
            Ok(Ok(data)) => Ok(document(data.to_json().into())),
            Ok(Err(error)) => {
                error!(%error, "Cannot read what a server that joins asks for.");
                Err(Status::internal("the server cannot read its certificate authorities; its log says why"))
            }
            // A panic of it is in the log.
            Err(_) => Err(Status::internal("the server cannot read its certificate authorities; its log says why")),
        }
    }

    async fn etcd_members(&self, etcd: &Membership) -> Result<Response<Body>, Status> {
        let members = etcd.document().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let members = serde_json::to_value(members).expect("it is numbers and texts");
        Ok(document(line(&members)))
    }

    /// The body is `{"newToken": "…"}`, or without it for a random one. What goes wrong with files and the datastore is told to the log
    /// alone, as in k3s.
    async fn rotate_token(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let rotation: TokenRotation = serde_json::from_slice(&body)
            .map_err(|_| Status::bad_request("the body is not JSON of the form {\"newToken\": \"…\"}"))?;
        match self.token.rotate(rotation.new_token.as_deref().filter(|token| !token.is_empty())).await {
            Ok(_) => Ok(Response::new(empty())),
            Err(error @ Error::Identity(IdentityError::Given { .. } | IdentityError::SameToken)) => {
                Err(Status::bad_request(error.to_string()))
            }
            Err(error) => {
                error!(%error, "The server token could not be exchanged.");
                Err(Status::internal("the server could not exchange its token; its log says why"))
            }
        }
    }

    /// The body is a map of files in the form of the bootstrap data. k3s answers every failure with 500 and no reason; what is wrong with
    /// what was sent is told here.
    async fn replace_authorities(&self, body: Bytes, replacement: Replacement) -> Result<Response<Body>, Status> {
        let offered = BootstrapData::parse(&body).map_err(|why| {
            Status::bad_request(format!(
                "the body is not JSON of the form {{\"ServerCA\": {{\"Content\": …}}, …}}: {why}"
            ))
        })?;
        match authorities::replace(&self.token, &offered, replacement).await {
            Ok(()) => {
                info!(
                    "The cluster's certificate authorities are replaced; each server takes the new ones at its next start."
                );
                let mut done = Response::new(empty());
                *done.status_mut() = StatusCode::NO_CONTENT;
                Ok(done)
            }
            Err(ReplaceError::Unfit(why)) => Err(Status::bad_request(why.to_string())),
            Err(ReplaceError::Store(error)) => {
                error!(%error, "The cluster's certificate authorities could not be replaced.");
                Err(Status::internal("the server could not store the certificate authorities; its log says why"))
            }
        }
    }

    async fn encryption_status(&self) -> Result<Response<Body>, Status> {
        let status = self.encryption.status(|| self.admin_client.client()).await?;
        Ok(document(serde_json::to_vec(&status).expect("it is texts and lists").into()))
    }

    /// Answers when it is done: of what takes long, as k3s for keys, or at once, as k3s for everything else.
    async fn change_encryption(&self, client: &Client, body: Bytes) -> Result<Response<Body>, Status> {
        let request: EncryptionRequest = serde_json::from_slice(&body).map_err(|_| {
            Status::bad_request("the body is not JSON of the form {\"stage\": \"…\"} or {\"enable\": …}")
        })?;
        self.encryption.request(client, &request).await.map_err(|error| refused_encryption(&error))?;
        Ok(Response::new(empty()))
    }
}

fn refused_encryption(error: &EncryptionError) -> Status {
    let status = error.status();
    warn!(%error, "The encryption of Secrets stays as it is.");
    status
}

fn allow(methods: &[Method], asked: &Method) -> Result<(), Status> {
    if methods.contains(asked) { Ok(()) } else { Err(Status::method_not_allowed("method not allowed")) }
}

/// Reads what is left of a short body that nobody asks for: an answer before the body's end makes HTTP/2 reset the stream, and some
/// clients then never see the answer.
async fn ignore(body: &mut Incoming) {
    if !body.is_end_stream() {
        // Whatever comes of it.
        let _ = timeout(IGNORED_BODY, Limited::new(body, LONGEST_BODY).collect()).await;
    }
}

async fn read(body: &mut Incoming, longest: usize) -> Result<Bytes, Status> {
    match timeout(BODY, Limited::new(body, longest).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("a request's body has at most {longest} bytes")))
        }
        Ok(Err(error)) => Err(Status::bad_request(format!("the request's body broke off: {error}"))),
        Err(_) => Err(Status::timeout(format!("the request's body did not come within {} s", BODY.as_secs()))),
    }
}

/// As Go's encoder writes it.
fn line(document: &Value) -> Bytes {
    format!("{document}\n").into()
}

fn document(json: Bytes) -> Response<Body> {
    typed(json, "application/json")
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    typed(text, "text/plain")
}

fn typed(body: impl Into<Bytes>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
