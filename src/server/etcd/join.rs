//! Joining: from a server of the cluster everything that a member needs, as k3s' servers do.
//!
//! ```text
//! /cacerts ─► trust ─► /v1-k3s/config: agreed? ─► /v1-k3s/server-bootstrap: authorities ─► certificates ─► /db/info: members
//!                                                                                            ─► MemberAdd, as a learner
//! ```
//! Nothing is written before the server has vouched for itself and the settings agree. What has been done is found done by the next
//! attempt.

use std::{sync::Once, time::Duration, time::SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use k3s_agent::{JoinError, Trust, establish_trust};
use k3s_components::Paths;
use k3s_config::{agent::ServerUrl, embedded_etcd::JoinedServer, secret::Secret, server::ServerConfig};
use k3s_datastore::Member;
use k3s_identity::{Password, Token};
use k3s_supervise::{Backoff, Gate};
use k3s_supervisor_api::{BootstrapData, Client, MembersDocument, RequestError, basic, paths};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tracing::{info, warn};

use super::{
    error::EtcdError,
    membership::{cluster_at, is_of_node},
};
use crate::{
    Error, agreement,
    bootstrap_data::{self, Precedence},
    certificates::Certificates,
    cluster_document,
    host::Host,
};

/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between attempts: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// The accounts that servers and agents log in as.
const SERVER: &str = "server";
const NODE: &str = "node";

/// A server that joins.
pub(crate) struct Join<'a> {
    pub(crate) server: &'a JoinedServer,
    pub(crate) config: &'a ServerConfig,
    pub(crate) paths: &'a Paths,
    pub(crate) host: &'a Host,
    pub(crate) certificates: &'a Certificates,
    /// Kubernetes'.
    pub(crate) version: &'a str,
    /// Says what is waited for.
    pub(crate) gate: &'a Gate,
}

/// The member of a server that joins.
pub(super) struct NewMember<'a> {
    pub(super) name: &'a str,
    /// Where it will be reached.
    pub(super) peer_url: String,
}

impl Join<'_> {
    /// Becomes one more member, which has still to be started; returns all of the others that have been. Tries until it succeeds, or
    /// until trying cannot help.
    pub(super) async fn run(&self, member: &NewMember<'_>) -> Result<Vec<Member>, Error> {
        self.until_done(async || Ok(self.add(self.once().await?, member).await?)).await
    }

    /// Gets all that a server needs, and becomes no member; returns those that there are. Tries as long.
    pub(super) async fn members(&self) -> Result<Vec<Member>, Error> {
        self.until_done(async || self.once().await).await
    }

    async fn until_done<T>(&self, attempt: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
        let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
        let mut told = None;
        loop {
            match attempt().await {
                Err(Error::Etcd(error)) if error.is_passing() => {
                    let why = self.not_yet(&error);
                    self.gate.waiting(format!("joining the cluster's etcd: {why}"));
                    if told.as_ref() != Some(&why) {
                        warn!(why, "This server cannot join the cluster's etcd yet; trying again.");
                        told = Some(why);
                    }
                    backoff.wait().await;
                }
                done => return done,
            }
        }
    }

    /// Why it has to be waited, and for whom.
    fn not_yet(&self, error: &EtcdError) -> String {
        let url = &self.server.url;
        match error {
            EtcdError::Join(JoinError::Request(RequestError::Connect(_) | RequestError::Timeout(_))) => {
                format!("{url} does not answer ({error}): start that server, or correct --server")
            }
            EtcdError::Join(_) => format!("{url}: {error}"),
            error => error.to_string(),
        }
    }

    /// Agrees with the server, and gets the cluster's authorities and the members of its etcd.
    async fn once(&self) -> Result<Vec<Member>, Error> {
        let (token, password) = self.token()?;
        let (url, told) = (&self.server.url, Once::new());
        let shown = async |tls| Api { url, tls }.get(paths::CACERTS, None).await;
        let trust: Trust =
            establish_trust(shown, token.ca_hash.as_ref(), None, &told).await.map_err(EtcdError::from)?;
        let api = Api { url, tls: trust.tls(None).map_err(EtcdError::from)? };

        self.agree(&api, &password).await?;
        let login = basic(SERVER, password.expose());
        let bootstrap = api.get(paths::SERVER_BOOTSTRAP, Some(login.clone())).await;
        let bootstrap = bootstrap.map_err(|error| self.refused(error))?;
        let unusable = |path, why: String| EtcdError::Answer { server: url.clone(), path, why };
        let data = BootstrapData::parse(&bootstrap).map_err(|why| unusable(paths::SERVER_BOOTSTRAP, why.to_owned()))?;
        bootstrap_data::reconcile(&data, &self.paths.server(), Precedence::Undecided)?;
        self.certificates.ensure(SystemTime::now())?;

        let answer = api.get(paths::DB_INFO, Some(login)).await.map_err(|error| self.refused(error))?;
        let document: MembersDocument =
            serde_json::from_slice(&answer).map_err(|error| unusable(paths::DB_INFO, error.to_string()))?;
        let members = document.members.into_iter().map(|member| Member {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            is_learner: member.is_learner,
        });
        Ok(members.collect())
    }

    /// The whole token, and the password in it.
    fn token(&self) -> Result<(Token, Password), Error> {
        let text = match &self.server.token {
            Some(given) => given.expose().to_owned(),
            None => {
                let stored = k3s_files::read(&self.paths.server().join("token"))?.ok_or(EtcdError::NoToken)?;
                String::from_utf8_lossy(&stored).trim().to_owned()
            }
        };
        let token: Token = text.parse().map_err(EtcdError::Token)?;
        let password = token.password().map_err(EtcdError::Token)?.clone();
        Ok((token, password))
    }

    /// Compares what servers have to agree on.
    async fn agree(&self, api: &Api<'_>, password: &Password) -> Result<(), Error> {
        let agents = self.config.agent_token.as_ref().map_or(password.expose(), Secret::expose);
        let answer = api.get(paths::CONFIG, Some(basic(NODE, agents))).await.map_err(|error| match error.status() {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                EtcdError::Credentials { server: self.server.url.clone() }
            }
            _ => error.into(),
        })?;
        let there = serde_json::from_slice(&answer).map_err(|error| EtcdError::Answer {
            server: self.server.url.clone(),
            path: paths::CONFIG,
            why: error.to_string(),
        })?;
        let here = cluster_document::published(self.config, self.paths, self.host, self.version)?;
        Ok(agreement::compare(&here, &there)?)
    }

    /// Has the members add this one, unless an earlier attempt has.
    async fn add(&self, members: Vec<Member>, new: &NewMember<'_>) -> Result<Vec<Member>, EtcdError> {
        let is_own_address = |member: &Member| member.peer_urls.contains(&new.peer_url);
        let is_ours = |member: &Member| member.name == new.name || member.name.is_empty() && is_own_address(member);
        let is_in_the_way = |member: &&Member| {
            !member.name.is_empty()
                && member.name != new.name
                && (is_of_node(member, &self.host.name) || is_own_address(member))
        };
        if let Some(member) = members.iter().find(is_in_the_way) {
            let (member, node) = (member.name.clone(), self.host.name.clone());
            return Err(EtcdError::DuplicateName { member, node });
        }
        if !members.iter().any(is_ours) {
            let urls = members.iter().filter(|member| !member.is_learner).flat_map(|member| &member.client_urls);
            let cluster = cluster_at(self.paths, urls).ok_or_else(|| EtcdError::Answer {
                server: self.server.url.clone(),
                path: paths::DB_INFO,
                why: "it names no member that can be reached".to_owned(),
            })?;
            cluster.add_learner(&new.peer_url).await?;
            info!(member = new.name, url = new.peer_url, "Joined the cluster's etcd as a member that learns.");
        }
        Ok(members.into_iter().filter(|member| !is_ours(member) && !member.name.is_empty()).collect())
    }

    fn refused(&self, error: RequestError) -> EtcdError {
        let server = self.server.url.clone();
        match error {
            RequestError::Refused { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => {
                EtcdError::Credentials { server }
            }
            RequestError::Refused { status: StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND, message } => {
                EtcdError::NoEtcd { server, why: message }
            }
            error => error.into(),
        }
    }
}

/// A server's supervisor API.
struct Api<'a> {
    url: &'a ServerUrl,
    tls: ClientConfig,
}

impl Api<'_> {
    async fn get(&self, path: &str, login: Option<HeaderValue>) -> Result<Bytes, RequestError> {
        let mut request = Request::get(path)
            .header(header::HOST, self.url.host.as_str())
            .body(Full::default())
            .expect("the paths are our own, and a host is a header's value");
        request.headers_mut().extend(login.map(|login| (header::AUTHORIZATION, login)));
        let connect = TcpStream::connect((self.url.host.as_str(), self.url.port));
        // Every server's certificate names loopback, whatever the address that leads to it.
        let client = Client::new(self.tls.clone(), ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        client.send(connect, request, PATIENCE).await
    }
}
