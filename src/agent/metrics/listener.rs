//! The listener: TLS, HTTP/1.1, and little patience with strangers.

use std::{convert::Infallible, pin::pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k3s_listener::{Arrival, Connections, Handshakes, Inbound, Limits, Peer, accept, drive};
use prometheus_client::{encoding::text, registry::Registry};
use rustls::ServerConfig;
use tokio::{net::TcpListener, select, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};

use super::{access::Access, refusal::Refusal};

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
/// All headers of a request, bytes: tokens of service accounts have one or two thousand.
const HEADERS: usize = 16 << 10;
/// Few ask for one page.
const LIMITS: Limits =
    Limits { strangers: 128, strangers_of_source: 64, authenticated: 128, authenticated_of_source: 64 };

/// What is shown, and to whom.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) registry: Arc<Registry>,
    /// As it is now: certificates and authorities are renewed.
    pub(super) access: watch::Receiver<Arc<Access>>,
}

/// Serves the page until `shutdown`, which cuts what is under way.
pub(super) async fn serve(listener: TcpListener, page: Page, mut tls: ServerConfig, shutdown: CancellationToken) {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (handshakes, connections, tasks) = (Handshakes::new(tls), Connections::new(LIMITS), TaskTracker::new());
    if let Ok(address) = listener.local_addr() {
        info!(%address, "Serving this node's metrics.");
    }
    accept(&listener, &connections, &shutdown, |arrival| {
        let (handshakes, page, shutdown) = (handshakes.clone(), page.clone(), shutdown.clone());
        tasks.spawn(async move {
            shutdown.run_until_cancelled(connection(arrival, &handshakes, page)).await;
        });
    })
    .await;
    tasks.close();
    tasks.wait().await;
}

async fn connection(arrival: Arrival, handshakes: &Handshakes, mut page: Page) {
    let address = arrival.address;
    let access = page.access.borrow_and_update().clone();
    let Inbound { peer, protocol, requests, stream } = match handshakes.shake(arrival, Some(&access.client_ca)).await {
        Ok(inbound) => inbound,
        Err(error) => {
            return debug!(%address, error = &error as &dyn std::error::Error, "A client sends no requests.");
        }
    };
    let answer = service_fn(async |request| {
        let _running = requests.begin();
        let answered = answer(&request, &peer, &page.registry, &access).await.unwrap_or_else(|refusal| {
            debug!(%address, %refusal, "A request for metrics was refused.");
            refusal.into()
        });
        Ok::<_, Infallible>(answered)
    });
    let serving = http1::Builder::new()
        // The connection's clock has it.
        .header_read_timeout(None)
        .max_buf_size(HEADERS)
        .serve_connection(TokioIo::new(stream), answer);
    let serving = pin!(serving);
    let drain = CancellationToken::new();
    let mut access_now = page.access.clone();
    let renewed = async {
        // Whoever it is has to be verified by the authorities of now.
        if access_now.changed().await.is_ok() {
            drain.cancel();
        }
        std::future::pending().await
    };
    let served = select! {
        served = drive(serving, http1::Connection::graceful_shutdown, (&peer, protocol, &requests), &drain) => served,
        never = renewed => never,
    };
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%address, %error, "A request for metrics broke off."),
        Err(reason) => debug!(%address, %reason, "A connection was cut off."),
    }
}

async fn answer<B>(
    request: &Request<B>,
    peer: &Peer,
    registry: &Registry,
    access: &Access,
) -> Result<Response<Full<Bytes>>, Refusal> {
    if request.uri().path() != "/metrics" {
        return Err(Refusal::NotFound);
    }
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    access.decide(request.headers(), peer).await?;
    peer.authenticate();
    let mut text = String::new();
    text::encode(&mut text, registry).map_err(|_| Refusal::Internal)?;
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, OPEN_METRICS);
    Ok(response)
}
