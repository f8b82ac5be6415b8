//! etcd's v3 gRPC API: one file per service, the dispatch here.

mod auth;
mod call;
mod cluster;
mod connection;
mod hash;
mod health;
mod kv;
mod lease;
mod maintenance;
pub(crate) mod messages;
mod watch;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::error::{Error, RequestError};
use crate::listen::Listener;
use crate::revision::Revision;
use crate::store::Store;
use call::{Payload, streaming, unary};
use messages::ResponseHeader;

/// The version of etcd whose behaviour this is. kube-apiserver chooses features by it.
const VERSION: &str = "3.6.8";
/// We are a cluster of one member that never changes.
const CLUSTER_ID: u64 = 0x6b33_735f_636c_7573;
const MEMBER_ID: u64 = 0x6b33_735f_6d65_6d62;
const RAFT_TERM: u64 = 1;

/// How long a client may take to make its connection usable.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to leave clients waiting when there is no descriptor for them.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `shutdown`; then streams are ended, requests answered, connections closed.
pub(crate) async fn serve(
    store: Arc<Store>,
    mut listener: impl Listener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let url: Arc<str> = listener.url().into();
    info!(%url, "Serving etcd's API from the datastore.");
    let connections = TaskTracker::new();
    let result = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break Ok(()),
        };
        match accepted {
            Ok(handshake) => {
                let service = Service { store: Arc::clone(&store), url: Arc::clone(&url), shutdown: shutdown.clone() };
                connections.spawn(serve_client(service, handshake));
            }
            // Running out of descriptors or a client that left early is no reason to stop listening.
            Err(error) if is_passing(&error) => {
                warn!(%error, "A connection could not be accepted.");
                sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => break Err(Error::file("accept connections on", url.as_ref())(error)),
        }
    };
    shutdown.cancel();
    connections.close();
    connections.wait().await;
    result
}

fn is_passing(error: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

async fn serve_client<C>(service: Service, handshake: impl Future<Output = std::io::Result<C>>)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shutdown = service.shutdown.clone();
    match shutdown.run_until_cancelled(timeout(HANDSHAKE, handshake)).await {
        Some(Ok(Ok(stream))) => connection::serve(service, stream).await,
        Some(Ok(Err(error))) => debug!(%error, "A client was refused at the handshake."),
        Some(Err(_)) => debug!("A client did not finish its handshake in time."),
        None => {}
    }
}

/// Answers one call as a connection does, and returns its status once all of the answer is there.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) async fn ask(store: &Arc<Store>, path: &str, body: bytes::Bytes) -> Status {
    use http_body_util::{BodyExt as _, Full};
    let service = Service { store: Arc::clone(store), url: "".into(), shutdown: CancellationToken::new() };
    let request = Request::post(path).header("content-type", "application/grpc").body(Full::new(body));
    let (head, body) = service.answer(request.expect("the path is one")).await.into_parts();
    let body = match body.collect().await {
        Ok(body) => body,
        Err(status) => return status,
    };
    let status = body.trailers().and_then(Status::from_header_map).or(Status::from_header_map(&head.headers));
    status.unwrap_or_else(|| Status::internal("a call was answered without a status"))
}

/// What every call needs.
#[derive(Clone)]
struct Service {
    store: Arc<Store>,
    /// Where this is served.
    url: Arc<str>,
    shutdown: CancellationToken,
}

impl Service {
    /// Answers a call and counts how.
    async fn answer(self, request: Request<impl Payload>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let store = Arc::clone(&self.store);
        let response = self.dispatch(&path, request).await;
        // A refused call says so in its headers; others say OK after their body.
        let code =
            response.headers().get(Status::GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        store.metrics.answered(&path, code);
        response
    }

    async fn dispatch(self, path: &str, request: Request<impl Payload>) -> Response<Body> {
        match path {
            "/etcdserverpb.KV/Range" => unary(request, |r| kv::range(self, r)).await,
            "/etcdserverpb.KV/Put" => unary(request, |r| kv::put(self, r)).await,
            "/etcdserverpb.KV/DeleteRange" => unary(request, |r| kv::delete_range(self, r)).await,
            "/etcdserverpb.KV/Txn" => unary(request, |r| kv::txn(self, r)).await,
            "/etcdserverpb.KV/Compact" => unary(request, |r| kv::compact(self, r)).await,
            "/etcdserverpb.Watch/Watch" => streaming(request, |r| watch::watch(self, r)).await,
            "/etcdserverpb.Lease/LeaseGrant" => unary(request, |r| lease::grant(self, r)).await,
            "/etcdserverpb.Lease/LeaseRevoke" => unary(request, |r| lease::revoke(self, r)).await,
            "/etcdserverpb.Lease/LeaseKeepAlive" => streaming(request, |r| lease::keep_alive(self, r)).await,
            "/etcdserverpb.Lease/LeaseTimeToLive" => unary(request, |r| ready(lease::time_to_live(&self, r))).await,
            "/etcdserverpb.Lease/LeaseLeases" => unary(request, |r| ready(lease::leases(&self, r))).await,
            "/etcdserverpb.Maintenance/Status" => unary(request, |r| maintenance::status(self, r)).await,
            "/etcdserverpb.Maintenance/Alarm" => unary(request, |r| ready(maintenance::alarm(&self, r))).await,
            "/etcdserverpb.Maintenance/Defragment" => unary(request, |r| maintenance::defragment(self, r)).await,
            "/etcdserverpb.Maintenance/Hash" => unary(request, |r| maintenance::hash(self, r)).await,
            "/etcdserverpb.Maintenance/HashKV" => unary(request, |r| maintenance::hash_kv(self, r)).await,
            "/etcdserverpb.Cluster/MemberList" => unary(request, |r| ready(cluster::member_list(&self, r))).await,
            "/etcdserverpb.Auth/AuthStatus" => unary(request, |r| ready(auth::status(&self, r))).await,
            "/etcdserverpb.Auth/Authenticate" => unary(request, |r| ready(auth::authenticate(r))).await,
            "/grpc.health.v1.Health/Watch" => streaming(request, |r| health::watch(self, r)).await,
            "/grpc.health.v1.Health/Check" => unary(request, |r| ready(health::check(&self, r))).await,
            other => Status::unimplemented(format!("{other} is not served: {}", why_not(other))).into_http(),
        }
    }

    /// A header with a given revision.
    fn header(&self, revision: Revision) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: CLUSTER_ID,
            member_id: MEMBER_ID,
            revision: revision.0,
            raft_term: RAFT_TERM,
        })
    }

    /// A header with the revision of this moment.
    fn header_now(&self) -> Option<ResponseHeader> {
        self.header(self.store.revision())
    }
}

/// Why a call of etcd's is not served.
fn why_not(path: &str) -> &'static str {
    match path.rsplit_once('/').unwrap_or_default() {
        ("/etcdserverpb.Maintenance", "Snapshot") => {
            "the data is an SQLite file, not one of etcd's; `k3s snapshot save` copies it"
        }
        ("/etcdserverpb.Maintenance", "MoveLeader") => "the one member there is always leads",
        ("/etcdserverpb.Maintenance", "Downgrade") => "the data has no etcd version that it could go back to",
        ("/etcdserverpb.Cluster", _) => "this datastore is one server on one file; members cannot be changed",
        ("/etcdserverpb.Auth", _) => {
            "there are no users and roles; who may open the socket, or has a trusted certificate, may do everything"
        }
        ("/v3lockpb.Lock" | "/v3electionpb.Election", _) => "build it of leases and transactions, as etcdctl does",
        _ => "this datastore does not know it",
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let code = match &error {
            RequestError::EmptyKey
            | RequestError::KeyNotFound
            | RequestError::ValueProvided
            | RequestError::LeaseProvided
            | RequestError::TooManyOps
            | RequestError::DuplicateKey
            | RequestError::InvalidSortOption
            | RequestError::RequestTooLarge
            | RequestError::ReservedKey(_) => Code::InvalidArgument,
            RequestError::Compacted | RequestError::FutureRevision | RequestError::LeaseTtlTooLarge => Code::OutOfRange,
            RequestError::NoSpace => Code::ResourceExhausted,
            RequestError::LeaseNotFound => Code::NotFound,
            RequestError::LeaseExists | RequestError::AuthNotEnabled => Code::FailedPrecondition,
            RequestError::Unsupported(_) => Code::Unimplemented,
            RequestError::Storage(_) => Code::Internal,
            RequestError::Stopped(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}
