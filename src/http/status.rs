//! Errors as Kubernetes says them: a `metav1.Status` in JSON, so that kubectl and client-go show our sentence.

use http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::body::{self, Body};

/// What is shown of another program's message, characters.
const LONGEST: usize = 2000;

/// An error answer. Reasons are those of apimachinery's `StatusReason`; codes it has no reason for go without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    code: StatusCode,
    reason: Option<&'static str>,
    message: String,
    retry: bool,
}

impl Status {
    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("BadRequest"), message)
    }

    /// 401: who asks is not known.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some("Unauthorized"), message)
    }

    /// 403: who asks is known, or nobody, and may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Some("Forbidden"), message)
    }

    /// 404: nothing is there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("NotFound"), message)
    }

    /// 405: something is there, but not for this method.
    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Some("MethodNotAllowed"), message)
    }

    /// 408: the request's body did not come in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, Some("Timeout"), message)
    }

    /// 409: what the request asks for is somebody else's.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, Some("Conflict"), message)
    }

    /// 413: the request's body is longer than any that is right.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("RequestEntityTooLarge"), message)
    }

    /// 429 with `Retry-After: 1`: as many ask at the same time as may.
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        Self { retry: true, ..Self::new(StatusCode::TOO_MANY_REQUESTS, Some("TooManyRequests"), message) }
    }

    /// 500: we failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("InternalError"), message)
    }

    /// 501: this version does not do that.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, None, message)
    }

    /// 502: kube-apiserver took the request and did not answer; it may have acted on it.
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, Some("InternalError"), message)
    }

    /// 503 with `Retry-After: 1`, upon which client-go tries again: nothing has been done.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("ServiceUnavailable"), message) }
    }

    /// The message of the Status in an answer's body, or the body itself where it is none; short, and without control characters.
    pub fn message_in(body: &[u8]) -> String {
        #[derive(Deserialize)]
        struct Told {
            message: String,
        }
        let told: Option<Told> = serde_json::from_slice(body).ok();
        let text = told.map_or_else(|| String::from_utf8_lossy(body).into_owned(), |told| told.message);
        text.chars().filter(|c| !c.is_control()).take(LONGEST).collect::<String>().trim().to_owned()
    }

    fn new(code: StatusCode, reason: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry: false }
    }
}

impl From<Status> for Response<Body> {
    fn from(status: Status) -> Self {
        let object = Object {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &status.message,
            reason: status.reason,
            code: status.code.as_u16(),
        };
        let json = serde_json::to_vec(&object).expect("an object of strings and numbers serializes");
        let mut response = Self::new(body::full(json));
        *response.status_mut() = status.code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(status: Status) -> (Response<()>, String) {
        let (parts, body) = Response::from(status).into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(parts, ()), String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn reads_like_apimachinerys() {
        let (response, json) = text(Status::unavailable("apiserver not ready")).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(
            json,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"apiserver not ready","reason":"ServiceUnavailable","code":503}"#
        );
    }

    #[tokio::test]
    async fn a_code_without_a_reason_has_none() {
        let (response, json) = text(Status::not_implemented("later")).await;
        assert!(!response.headers().contains_key("retry-after"));
        assert!(json.ends_with(r#""message":"later","code":501}"#), "{json}");
    }

    #[tokio::test]
    async fn a_message_is_found_again_and_all_else_is_a_short_text() {
        let (_, json) = text(Status::forbidden("no\n\u{1b}[31m")).await;
        assert_eq!(Status::message_in(json.as_bytes()), "no[31m");
        assert_eq!(Status::message_in(b"  not now\n"), "not now");
        assert_eq!(Status::message_in(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(Status::message_in(&[b'x'; 5000]).len(), LONGEST);
    }
}
