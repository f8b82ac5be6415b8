//! The status over a unix socket, as JSON over HTTP/1: `curl --unix-socket /run/k3s/status.sock http://k3s/status` reads it too.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HOST, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k3s_http::exchange;
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::Status;
use crate::Supervisor;

/// Nobody waits longer for a status.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// More than any status has.
const LARGEST: usize = 4 << 20;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody listens.
    #[error("k3s does not run here, or not as this user: {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody listens and does not answer as we do.
    #[error("{} gives no status: {why}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Takes the socket at `path` for root alone. One that a dead process left is replaced; one that somebody serves is an error of kind
/// [`io::ErrorKind::AddrInUse`].
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody serves it; else its folder cannot be made or is not writable.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another k3s serves {}", path.display())));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path)? => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn is_socket(path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.file_type().is_socket())
}

/// Answers `GET /status` until `shutdown`; then answers what was asked and removes the socket.
pub async fn serve(listener: Arc<UnixListener>, supervisor: Supervisor, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(timeout(PATIENCE, answer(stream, supervisor.clone())));
            }
            // Out of descriptors, most likely: they come back one by one, and each one that ends lets us try again.
            Err(error) => {
                warn!(%error, "A status connection could not be accepted.");
                shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
    if let Some(path) = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned)) {
        // Gone with the run directory at the latest.
        let _ = fs::remove_file(path);
    }
}

async fn answer(stream: UnixStream, supervisor: Supervisor) {
    let service = service_fn(async |request: Request<Incoming>| {
        let response = if request.uri().path() != "/status" {
            plain(StatusCode::NOT_FOUND, "The status is at /status.\n")
        } else if request.method() != Method::GET {
            plain(StatusCode::METHOD_NOT_ALLOWED, "The status is for reading.\n")
        } else {
            json(&supervisor.status().await)
        };
        Ok::<_, Infallible>(response)
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "A status connection broke.");
    }
}

fn json(status: &Status) -> Response<Full<Bytes>> {
    let text = serde_json::to_vec(status).expect("a status is strings and numbers, with string keys only");
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

/// Asks the `k3s` that serves the socket at `path`.
///
/// # Errors
/// Nobody listens there, not to this user, or not in time, or the answer is of another version.
pub async fn fetch(path: &Path) -> Result<Status, StatusError> {
    let wrong = |why: String| StatusError::Answer { path: path.to_owned(), why };
    let stream =
        UnixStream::connect(path).await.map_err(|source| StatusError::Connect { path: path.to_owned(), source })?;
    let body = timeout(PATIENCE, get(stream))
        .await
        .map_err(|_| wrong(format!("no answer for {PATIENCE:?}")))?
        .map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| wrong(format!("the answer is of another version of k3s: {error}")))
}

async fn get(stream: UnixStream) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let request = Request::get("/status").header(HOST, "k3s").body(Full::default())?;
    Ok(exchange(TokioIo::new(stream), request, LARGEST).await?.body?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

    use super::*;
    use crate::{State, program::Program};

    #[tokio::test]
    async fn what_is_served_is_what_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/status.sock");
        let supervisor = Supervisor::example();
        supervisor.start([Program::example("kubelet", "exec sleep 1000")]).unwrap();
        supervisor.all_ready().await.unwrap();
        supervisor.warn("forward", "The FORWARD chain's policy is DROP.");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(Arc::new(bind(&path).unwrap()), supervisor.clone(), shutdown.clone()));

        let status = fetch(&path).await.unwrap();
        assert_eq!(status.headline, "All components are ready. There is 1 warning.");
        let kubelet = &status.components[0];
        assert_eq!((kubelet.name.as_str(), kubelet.state), ("kubelet", State::Ready));
        assert!(kubelet.memory.is_some() && kubelet.pid.is_some() && kubelet.ready_at >= kubelet.started_at);

        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        shutdown.cancel();
        server.await.unwrap();
        assert!(!path.exists());
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn nobody_there_is_told_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        let error = fetch(&path).await.unwrap_err().to_string();
        assert!(error.starts_with("k3s does not run here, or not as this user: "), "{error}");
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        // Bound and not listening is to others what a dead listener is.
        let kind = SockType::Stream;
        let socket = socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        assert!(bind(&path).is_ok());

        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert_eq!(bind(&file).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn json_names_things_as_documented() {
        let text = serde_json::to_value(Status::example()).unwrap();
        assert_eq!(text["health"], "degraded");
        assert_eq!(text["components"][0]["last_exit"]["signal"], "SIGKILL");
        assert_eq!(text["components"][1]["last_exit"]["code"], 1);
        assert_eq!(serde_json::from_value::<Status>(text).unwrap(), Status::example());
    }
}
