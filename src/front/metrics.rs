//! `/metrics` with `--supervisor-metrics`: kube-apiserver's page, and ours behind it.
//!
//! k3s shows both on this path, since there they are one process. kube-apiserver decides who may see the page, as it does
//! without us; a refusal of its is passed on.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use k3s_http::{Body, Status};
use prometheus_client::{encoding::text, registry::Registry};

/// The format in which pages can be put one behind the other.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// Whether a request is for the page.
pub(super) fn is_asked_for(method: &Method, path: &str) -> bool {
    *method == Method::GET && path == "/metrics"
}

/// Has kube-apiserver answer in a form to which ours can be added.
pub(super) fn ask_for_text(headers: &mut HeaderMap) {
    headers.insert(header::ACCEPT, TEXT);
    headers.remove(header::ACCEPT_ENCODING);
}

/// Adds our page to kube-apiserver's.
pub(super) fn append(response: Response<Body>, registry: &Registry) -> Result<Response<Body>, Status> {
    let plain =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if response.status() != StatusCode::OK || !plain {
        return Ok(response);
    }
    let mut ours = String::new();
    text::encode_registry(&mut ours, registry).map_err(|_| Status::internal("the metrics could not be written"))?;
    let (mut parts, theirs) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let pages = theirs.into_data_stream().chain(stream::iter([Ok(ours.into())]));
    Ok(Response::from_parts(parts, StreamBody::new(pages.map_ok(Frame::data)).boxed_unsync()))
}
