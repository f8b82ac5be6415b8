//! The page that Prometheus reads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
/// How long a client may take to send its request's headers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to leave clients waiting when there is no descriptor for them.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `/metrics` over plain HTTP until `shutdown`; requests under way are cut then.
pub(crate) async fn serve(listener: TcpListener, registry: Registry, shutdown: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "Serving metrics.");
    }
    let registry = Arc::new(registry);
    let connections = TaskTracker::new();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let (registry, shutdown) = (Arc::clone(&registry), shutdown.clone());
                connections.spawn(async move {
                    shutdown.run_until_cancelled(serve_connection(stream, registry)).await;
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

async fn serve_connection(stream: TcpStream, registry: Arc<Registry>) {
    let answer = service_fn(move |request| {
        let response = answer(&request, &registry);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        debug!(%error, "A request for metrics broke off.");
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<bytes::Bytes>> {
    let refuse = |status, reason: &'static str| {
        let mut response = Response::new(Full::from(reason));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return refuse(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read\n");
    }
    let mut page = String::new();
    match text::encode(&mut page, registry) {
        Ok(()) => {
            let mut response = Response::new(Full::from(page));
            response.headers_mut().insert(header::CONTENT_TYPE, OPEN_METRICS);
            response
        }
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::contract::Served;
    use crate::{Datastore, Options};

    /// Status line, headers and body of a request's answer.
    async fn get(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_page_tells_what_the_store_does() {
        let folder = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(folder.path().join("state.db"))).await.unwrap();
        let mut registry = Registry::default();
        datastore.register_metrics(&mut registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let page = tokio::spawn(serve(listener, registry, shutdown.clone()));

        let served = Served::start(datastore).await;
        let mut client = served.client.clone();
        client.lease_grant(60, None).await.unwrap();
        for value in ["1", "2", "3"] {
            client.put("a", value, None).await.unwrap();
        }
        client.get("a", None).await.unwrap();
        client.put("", "", None).await.unwrap_err();
        client.compact(4, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
        let _watch = client.watch("a", None).await.unwrap();

        let shown = get(address, "GET /metrics").await;
        assert!(shown.starts_with("HTTP/1.1 200 OK\r\n") && shown.ends_with("# EOF\n"), "{shown}");
        for line in [
            "requests_total{method=\"KV/Put\",code=\"OK\"} 3",
            "requests_total{method=\"KV/Put\",code=\"InvalidArgument\"} 1",
            "requests_total{method=\"KV/Range\",code=\"OK\"} 1",
            "commit_rows_bucket{le=\"1.0\"} 3",
            "commit_rows_sum 3.0",
            "batch_seconds_count 3",
            "compactions_total 1",
            "compacted_rows_total 2",
            "revision 4",
            "compacted_revision 4",
            "no_space 0",
            "watchers 1",
            "watch_lag_revisions 0",
            "leases 1",
        ] {
            assert!(shown.lines().any(|found| found == format!("k3s_datastore_{line}")), "{line} is not in {shown}");
        }
        // Rows, lease, compacted revision and deleted rows are a commit each.
        assert!(shown.contains("k3s_datastore_commit_seconds_count 6\n"), "{shown}");
        assert!(get(address, "GET /").await.starts_with("HTTP/1.1 404"));
        assert!(get(address, "POST /metrics").await.starts_with("HTTP/1.1 405"));

        served.close().await;
        assert!(!get(address, "GET /metrics").await.contains("k3s_datastore_revision"), "the store is gone");
        shutdown.cancel();
        page.await.unwrap();
    }
}
