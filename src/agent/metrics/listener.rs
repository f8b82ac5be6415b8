//! The listener: TLS, HTTP/1.1, and little patience with strangers.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use k3s_listener::{Peer, Verification};
use prometheus_client::{encoding::text, registry::Registry};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{access::Access, refusal::Refusal};

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's headers, the time before they begin included; kube-apiserver's limit.
const REQUEST_HEADERS: Duration = Duration::from_secs(32);
/// All headers of a request, bytes: tokens of service accounts have one or two thousand.
const HEADERS: usize = 16 << 10;
/// Connections at one time; others wait in line.
const CONNECTIONS: usize = 64;
/// How long to leave clients waiting when there is no descriptor for them.
const PAUSE: Duration = Duration::from_millis(100);

/// What is shown, and to whom.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) registry: Arc<Registry>,
    /// As it is now: certificates and authorities are renewed.
    pub(super) access: watch::Receiver<Arc<Access>>,
    pub(super) verification: Verification,
}

/// Serves the page until `shutdown`, which cuts what is under way.
pub(super) async fn serve(listener: TcpListener, page: Page, mut tls: ServerConfig, shutdown: CancellationToken) {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    if let Ok(address) = listener.local_addr() {
        info!(%address, "Serving this node's metrics.");
    }
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    let accept = async || {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        (listener.accept().await, place)
    };
    while let Some((accepted, place)) = shutdown.run_until_cancelled(accept()).await {
        match accepted {
            Ok((stream, address)) => {
                let (acceptor, page, shutdown) = (acceptor.clone(), page.clone(), shutdown.clone());
                connections.spawn(async move {
                    shutdown.run_until_cancelled(connection(stream, address, acceptor, page)).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "A request for metrics could not be accepted.");
                shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, mut page: Page) {
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%address, %error, "A TLS handshake failed."),
        Err(_) => return debug!(%address, "A client did not finish its TLS handshake in time."),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let access = page.access.borrow_and_update().clone();
    let peer = Peer::new(address, page.verification.verify(&access.client_ca, chain).await);
    let answer = service_fn(async |request| {
        let answered = answer(&request, &peer, &page.registry, &access).await.unwrap_or_else(|refusal| {
            debug!(%address, %refusal, "A request for metrics was refused.");
            refusal.into()
        });
        Ok::<_, Infallible>(answered)
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_HEADERS)
            .max_buf_size(HEADERS)
            .serve_connection(TokioIo::new(stream), answer)
    );
    let served = select! {
        served = serving.as_mut() => served,
        // Whoever it was is to be verified by the authorities of now.
        _ = page.access.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        debug!(%address, %error, "A request for metrics broke off.");
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
    let mut text = String::new();
    text::encode(&mut text, registry).map_err(|_| Refusal::Internal)?;
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, OPEN_METRICS);
    Ok(response)
}
