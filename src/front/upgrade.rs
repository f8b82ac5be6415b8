//! HTTP/1.1 connections that change their protocol (exec, attach, port-forward: SPDY or websocket).
//!
//! Each gets a connection to kube-apiserver of its own. Once kube-apiserver has agreed, the two are spliced.

use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONNECTION, UPGRADE},
};
use hyper::{body::Incoming, client::conn::http1, upgrade};
use hyper_util::rt::TokioIo;
use k3s_http::{Body, Status, empty};
use k3s_splice::{ReadFirst, splice};
use tracing::debug;

use super::{
    body,
    connector::{Connector, Unreachable},
    headers,
    tasks::Tasks,
};

/// Asks kube-apiserver to change to `protocol`, and if it does, has `tasks` carry what both sides say from then on.
///
/// `request` is what to ask, without the headers of its connection.
pub(super) async fn forward(
    mut request: Request<Incoming>,
    protocol: HeaderValue,
    connector: &Connector,
    tasks: &Tasks,
) -> Result<Response<Body>, Status> {
    let client = upgrade::on(&mut request);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(UPGRADE, protocol);
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);

    let stream = connector.http1().await.map_err(unavailable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|source| unavailable(Unreachable::Http { address: connector.address(), source }))?;
    tasks.spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.map_err(|error| {
        debug!(%error, "An upgrade has no answer.");
        Status::bad_gateway("kube-apiserver ended the request without an answer")
    })?;

    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::remove_hop_by_hop(response.headers_mut());
        // The connection ends with its sender, so that lives as long as the answer.
        return Ok(response.map(|incoming| body::keep(body::streamed(incoming), sender)));
    }
    let server = upgrade::on(&mut response);
    tasks.spawn(async move {
        let carried = async {
            let (client, server) = tokio::try_join!(client, server)?;
            splice(ReadFirst::new(TokioIo::new(client)), ReadFirst::new(TokioIo::new(server))).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        if let Err(error) = carried.await {
            debug!(%error, "An upgraded connection broke off.");
        }
    });
    Ok(response.map(|_| empty()))
}

fn unavailable(why: Unreachable) -> Status {
    let error: &dyn std::error::Error = &why;
    debug!(error, "No connection for an upgrade.");
    Status::unavailable("apiserver not ready")
}
