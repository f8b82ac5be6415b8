//! Answers that show nothing: a `metav1.Status` in JSON, as Kubernetes' own pages give.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

/// Why the page is not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Nobody knows who asks.
    #[error("Unauthorized")]
    Unauthorized,
    /// Who asks may not, in Kubernetes' words.
    #[error("forbidden: User \"{user}\" cannot get path \"/metrics\"{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Forbidden {
        /// The user's name.
        user: String,
        /// The API's reason, where it gives one.
        reason: String,
    },
    /// Another path.
    #[error("there is nothing here but /metrics")]
    NotFound,
    /// Another method.
    #[error("metrics can only be read: use GET")]
    Method,
    /// The API, which knows who may see the page, does not answer, or refuses the question.
    #[error("the Kubernetes API, which decides who may see this page, could not be asked")]
    Unavailable,
    /// Ours to mend.
    #[error("the metrics could not be written")]
    Internal,
}

impl Refusal {
    /// HTTP's code, and apimachinery's `StatusReason`.
    fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }
}

impl From<Refusal> for Response<Full<Bytes>> {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = refusal.code();
        let status = Status {
            status: Some("Failure".into()),
            message: Some(refusal.to_string()),
            reason: Some(reason.into()),
            code: Some(code.as_u16().into()),
            ..Status::default()
        };
        let json = serde_json::to_vec(&status).expect("an object of strings and numbers serializes");
        let mut response = Self::new(json.into());
        *response.status_mut() = code;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
