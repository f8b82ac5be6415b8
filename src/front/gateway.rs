//! What happens to a request: it is answered here, or by kube-apiserver.

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use hyper::body::Incoming;
use k3s_http::{Body, Status};
use k3s_listener::Peer;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span};

use super::{
    Front, KubeApiserver,
    authentication::Authentication,
    body,
    connector::Connector,
    headers, metrics,
    party::{Party, TokenDigest},
    pool::{Connectors, Pool, PoolError},
    service::{Connection, Service},
    tasks::Tasks,
    tokens::{Tokens, Trial},
    unauthenticated::{self, Unauthenticated},
    upgrade,
};

/// How long a connection to kube-apiserver is kept without requests; it keeps its side for 90 s.
const IDLE: Duration = Duration::from_secs(60);

/// Requests without credentials that kube-apiserver is asked at the same time.
const ANONYMOUS: usize = 256;

/// Answers requests.
#[derive(Debug)]
pub(super) struct Gateway {
    kube_apiserver: watch::Receiver<KubeApiserver>,
    service: Arc<dyn Service>,
    shutdown: CancellationToken,
    pool: Pool,
    tokens: Tokens,
    unauthenticated: Unauthenticated,
    anonymous: Arc<Semaphore>,
    metrics: Option<Registry>,
}

/// A request's party, and what its answer tells of it.
struct Asking<'a> {
    party: Arc<Party>,
    trial: Option<Trial<'a>>,
    /// Held until the answer has ended.
    place: Option<OwnedSemaphorePermit>,
}

impl Gateway {
    pub(super) fn new(front: Front, shutdown: CancellationToken) -> Self {
        let Front { upstream, unauthenticated, kube_apiserver, service, metrics, .. } = front;
        let [trusted, plain] =
            [upstream.trusted_tls(), upstream.plain_tls()].map(|tls| Connector::new(upstream.address, tls));
        let pool = Pool::new(Connectors { trusted, plain }, IDLE);
        let (tokens, anonymous) = (Tokens::new(), Arc::new(Semaphore::new(ANONYMOUS)));
        Self { kube_apiserver, service, shutdown, pool, tokens, unauthenticated, anonymous, metrics }
    }

    /// Answers one request of `peer`. `tasks` run upgraded connections.
    pub(super) async fn answer(&self, mut request: Request<Incoming>, peer: &Peer, tasks: &Tasks) -> Response<Body> {
        let connection = Connection { peer, tasks, shutdown: &self.shutdown };
        if let Some(answer) = self.service.answer(&mut request, connection) {
            return answer.await;
        }
        let kube_apiserver = *self.kube_apiserver.borrow();
        match kube_apiserver {
            KubeApiserver::Ready => {}
            KubeApiserver::Starting => return Status::unavailable("apiserver not ready").into(),
            KubeApiserver::Disabled => return Status::unavailable("apiserver disabled").into(),
        }
        let metrics = self.metrics.as_ref().filter(|_| metrics::is_asked_for(request.method(), request.uri().path()));
        if metrics.is_some() {
            metrics::ask_for_text(request.headers_mut());
        }
        // What is logged of these, which are many, is for debugging.
        let path = request.uri().path();
        let span = debug_span!("request", client = %peer.address, method = %request.method(), path);
        let answer = self.forward(request, peer, tasks).instrument(span).await;
        match metrics {
            Some(registry) => answer.and_then(|page| metrics::append(page, registry)),
            None => answer,
        }
        .unwrap_or_else(Into::into)
    }

    /// Ends all connections to kube-apiserver.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Status> {
        let authentication = Authentication::of(peer, request.headers(), SystemTime::now()).map_err(|rejection| {
            debug!(peer = %peer.address, %rejection, "Refused a client certificate.");
            Status::unauthorized(rejection.to_string())
        })?;
        if !is_escaped(request.uri().path()) {
            return Err(Status::bad_request("the request's path has a % that no two hexadecimal digits follow"));
        }
        let Some(asking) = self.asking(&authentication, request.headers(), peer)? else {
            return Ok(unauthenticated::answer(request.uri(), request.headers()));
        };
        let upgrade = headers::upgrade(request.version(), request.headers()).cloned();

        let map = request.headers_mut();
        headers::remove_hop_by_hop(map);
        k3s_http::remove_forged_identity(map);
        // The client's `100 Continue` comes from us, when we begin to read the body.
        map.remove(header::EXPECT);
        headers::append_forwarded_for(map, peer.address.ip());
        if let Authentication::RequestHeader(identity) = authentication {
            headers::set_identity(map, identity).map_err(|why| Status::unauthorized(why.to_string()))?;
        }
        let Asking { party, trial, place } = asking;
        let answer = self.ask(&party, request, upgrade, tasks).await;
        match (trial, &answer) {
            (Some(trial), Ok(response)) if response.status() == StatusCode::UNAUTHORIZED => trial.refused(),
            (Some(trial), Ok(_)) => {
                trial.accepted();
                peer.authenticate();
            }
            (Some(trial), Err(_)) => trial.unanswered(),
            (None, _) => {}
        }
        match place {
            Some(place) => answer.map(|response| response.map(|answer| body::keep(answer, place))),
            None => answer,
        }
    }

    /// For whom kube-apiserver is asked; `None` if it is not.
    fn asking(
        &self,
        authentication: &Authentication<'_>,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Option<Asking<'_>>, Status> {
        let (party, trial, place) = match (authentication, TokenDigest::of(headers)) {
            (Authentication::RequestHeader(identity), _) => (Party::of(identity), None, None),
            (Authentication::Passthrough, Some(token)) => {
                (Party::Token(token), Some(self.tokens.try_out(token, peer.address.ip())?), None)
            }
            (Authentication::Passthrough, None) if self.unauthenticated == Unauthenticated::Refused => return Ok(None),
            (Authentication::Passthrough, None) => {
                let place = self.anonymous.clone().try_acquire_owned();
                let place =
                    place.map_err(|_| Status::too_many_requests("Too many requests, please try again later."))?;
                (Party::Anonymous(peer.address), None, Some(place))
            }
        };
        Ok(Some(Asking { party: Arc::new(party), trial, place }))
    }

    async fn ask(
        &self,
        party: &Arc<Party>,
        request: Request<Incoming>,
        upgrade: Option<HeaderValue>,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Status> {
        let connector = self.pool.connector(party);
        let mut response = match upgrade {
            Some(protocol) => upgrade::forward(request, protocol, connector, tasks).await?,
            None => {
                let mut response = self.pool.send(party, to_http2(request, connector)?).await?;
                headers::remove_hop_by_hop(response.headers_mut());
                response
            }
        };
        *response.version_mut() = Version::default();
        Ok(response)
    }
}

/// Whether each `%` begins an escape: Go's servers take no other path, and over HTTP/2 do not even answer.
fn is_escaped(path: &str) -> bool {
    let mut parts = path.split('%');
    parts.next();
    parts.all(|part| part.len() >= 2 && part.bytes().take(2).all(|digit| digit.is_ascii_hexdigit()))
}

/// The request for an HTTP/2 connection: its host is the authority.
fn to_http2(request: Request<Incoming>, connector: &Connector) -> Result<Request<Body>, Status> {
    let (mut parts, incoming) = request.into_parts();
    let host = parts.headers.remove(header::HOST);
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => uri::Authority::from_maybe_shared(host)
            .map_err(|_| Status::bad_request("the Host header is not a host name with an optional port"))?,
        (None, None) => uri::Authority::from_maybe_shared(connector.address().to_string())
            .expect("a socket address is an authority"),
    };
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    parts.uri = Uri::builder()
        .scheme(uri::Scheme::HTTPS)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| Status::bad_request("the request's target is not a path"))?;
    parts.version = Version::HTTP_2;
    Ok(Request::from_parts(parts, body::streamed(incoming)))
}

impl From<PoolError> for Status {
    fn from(error: PoolError) -> Self {
        debug!(%error, source = error.source(), "A request has no answer.");
        match error {
            PoolError::Unreachable(_) | PoolError::Untouched(_) => Self::unavailable("apiserver not ready"),
            PoolError::Stopping => Self::unavailable(error.to_string()),
            PoolError::Exhausted(why) => Self::too_many_requests(why.to_string()),
            PoolError::Unanswered(_) => Self::bad_gateway(error.to_string()),
        }
    }
}
