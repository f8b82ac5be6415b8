//! What happens to a request: it is answered here, or by kube-apiserver.

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Method, Request, Response, Uri, Version, header, uri};
use hyper::body::Incoming;
use k3s_pki::ClientCa;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    Front,
    body::{self, Body},
    connect::Nodes,
    connector::Connector,
    headers, metrics,
    peer::{Caller, Peer},
    pool::{Pool, PoolError},
    status::Status,
    tasks::Tasks,
    upgrade,
};
use crate::routes::{Route, Routes};

/// How long a connection to kube-apiserver is kept without requests; it keeps its side for 90 s.
const IDLE: Duration = Duration::from_secs(60);

/// Answers requests. kube-apiserver is reached in two ways that share nothing: one where our client certificate makes it
/// believe the `X-Remote-*` headers, and one where nothing does.
#[derive(Debug)]
pub(super) struct Gateway {
    client_ca: Arc<ClientCa>,
    ready: watch::Receiver<bool>,
    routes: Routes,
    nodes: Nodes,
    trusted: Pool,
    plain: Pool,
    metrics: Option<Registry>,
}

impl Gateway {
    pub(super) fn new(front: Front, shutdown: CancellationToken) -> Self {
        let Front { certificate: _, tls: _, client_ca, upstream, ready, routes, nodes, metrics } = front;
        let nodes = Nodes::new(nodes, shutdown);
        let pool = |tls| Pool::new(Connector::new(upstream.address, tls), IDLE);
        let (trusted, plain) = (pool(upstream.trusted_tls()), pool(upstream.plain_tls()));
        Self { client_ca, ready, routes, nodes, trusted, plain, metrics }
    }

    /// Answers one request of `peer`. `tasks` run upgraded connections.
    pub(super) async fn answer(&self, mut request: Request<Incoming>, peer: &Peer, tasks: &Tasks) -> Response<Body> {
        if request.method() == Method::CONNECT {
            let connected = self.nodes.connect(request, peer, &self.routes, tasks).await;
            return connected.unwrap_or_else(Into::into);
        }
        if request.uri().path() == k3s_tunnel::PATH {
            let opened = self.nodes.open_tunnel(request, peer, &self.routes, tasks).await;
            return opened.unwrap_or_else(Into::into);
        }
        if let Some(route) = Route::find(request.uri().path()) {
            return self.routes.answer(route, request, peer).await;
        }
        if !*self.ready.borrow() {
            return Status::unavailable("apiserver not ready").into();
        }
        let metrics = self.metrics.as_ref().filter(|_| metrics::is_asked_for(request.method(), request.uri().path()));
        if metrics.is_some() {
            metrics::ask_for_text(request.headers_mut());
        }
        let answer = self.forward(request, peer, tasks).await;
        match metrics {
            Some(registry) => answer.and_then(|page| metrics::append(page, registry)),
            None => answer,
        }
        .unwrap_or_else(Into::into)
    }

    /// Ends all connections to kube-apiserver.
    pub(super) async fn close(&self) {
        tokio::join!(self.trusted.close(), self.plain.close());
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Status> {
        let caller = peer.caller(request.headers(), &self.client_ca, SystemTime::now()).map_err(|rejection| {
            debug!(peer = %peer.address, %rejection, "Refused a client certificate.");
            Status::unauthorized(rejection.to_string())
        })?;
        let upgrade = headers::upgrade(request.version(), request.headers()).cloned();

        let map = request.headers_mut();
        headers::remove_hop_by_hop(map);
        headers::remove_forged_identity(map);
        // The client's `100 Continue` comes from us, when we begin to read the body.
        map.remove(header::EXPECT);
        headers::append_forwarded_for(map, peer.address.ip());
        let pool = match caller {
            Caller::Vouched(identity) => {
                headers::set_identity(map, identity).map_err(|why| Status::unauthorized(why.to_string()))?;
                &self.trusted
            }
            Caller::Own => &self.plain,
        };

        let mut response = match upgrade {
            Some(protocol) => upgrade::forward(request, protocol, pool.connector(), tasks).await?,
            None => {
                let request = to_http2(request, pool.connector())?;
                let mut response = pool.send(request).await?;
                headers::remove_hop_by_hop(response.headers_mut());
                response
            }
        };
        *response.version_mut() = Version::default();
        Ok(response)
    }
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
            PoolError::Unanswered(_) => Self::bad_gateway(error.to_string()),
        }
    }
}
