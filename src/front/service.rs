//! What is answered here and not by kube-apiserver.

use std::fmt;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use k3s_http::Body;
use k3s_listener::Peer;
use tokio_util::sync::CancellationToken;

use super::tasks::Tasks;

/// Answers requests in the place of kube-apiserver, whether that is ready or not.
pub trait Service: fmt::Debug + Send + Sync {
    /// The answer to `request`; `None` if it is one for kube-apiserver, and then it has been left as it was.
    fn answer<'a>(
        &'a self,
        request: &'a mut Request<Incoming>,
        connection: Connection<'a>,
    ) -> Option<BoxFuture<'a, Response<Body>>>;
}

/// The connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Who is at its other end.
    pub peer: &'a Peer,
    /// Run what goes on after the answer: a connection that has changed its protocol. They end with the front.
    pub tasks: &'a Tasks,
    /// Told when the front begins to end.
    pub shutdown: &'a CancellationToken,
}
