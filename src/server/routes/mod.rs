//! What the server answers itself: `/cacerts`, `/ping`, `/static/*`, and the paths that agents join by.

mod static_files;

use std::path::{Path, PathBuf};

use http::{HeaderValue, Method, Response, header};
use tracing::error;

use crate::front::{Body, Status, full};

/// The routes, with what they serve.
#[derive(Debug, Clone)]
pub struct Routes {
    server_ca: PathBuf,
    static_files: PathBuf,
}

impl Routes {
    /// Serves what is in `server_dir` (`<data>/server`).
    pub fn new(server_dir: &Path) -> Self {
        Self { server_ca: server_dir.join("tls/server-ca.crt"), static_files: server_dir.join("static") }
    }

    /// The answer, if the path is one of these.
    pub(crate) async fn answer(&self, method: &Method, path: &str) -> Option<Response<Body>> {
        match path {
            "/ping" => Some(text("pong")),
            "/cacerts" => Some(self.cacerts().await),
            _ => {
                if let Some(file) = path.strip_prefix("/static/") {
                    Some(static_files::answer(&self.static_files, method, file).await)
                } else if path.starts_with("/v1-k3s/") {
                    Some(Status::not_implemented("agents cannot join this version of the server yet").into())
                } else {
                    None
                }
            }
        }
    }

    /// The file as it is: agents compare its digest with the one in their token.
    async fn cacerts(&self) -> Response<Body> {
        match tokio::fs::read(&self.server_ca).await {
            Ok(bytes) => text(bytes),
            Err(error) => {
                error!(path = %self.server_ca.display(), %error, "Cannot read the certificate authority that agents ask for.");
                Status::internal("the server cannot read its certificate authority; its log says why").into()
            }
        }
    }
}

fn text(text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn get(routes: &Routes, path: &str) -> Option<(u16, Vec<u8>)> {
        let response = routes.answer(&Method::GET, path).await?;
        let status = response.status().as_u16();
        Some((status, response.into_body().collect().await.unwrap().to_bytes().to_vec()))
    }

    #[tokio::test]
    async fn answers_what_agents_ask_before_they_have_joined() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tls")).unwrap();
        std::fs::write(dir.path().join("tls/server-ca.crt"), "raw \u{7f} bytes\n").unwrap();
        let routes = Routes::new(dir.path());
        assert_eq!(get(&routes, "/ping").await, Some((200, b"pong".to_vec())));
        assert_eq!(get(&routes, "/cacerts").await, Some((200, b"raw \x7f bytes\n".to_vec())));
    }

    #[tokio::test]
    async fn leaves_the_rest_to_kube_apiserver() {
        let routes = Routes::new(Path::new("/nonexistent"));
        for path in ["/", "/api", "/ping/", "/cacerts/x", "/static", "/v1-k3s", "/v1-k3sx/config"] {
            assert_eq!(get(&routes, path).await, None, "{path}");
        }
    }

    #[tokio::test]
    async fn says_that_agents_cannot_join_yet() {
        let (status, body) = get(&Routes::new(Path::new("/nonexistent")), "/v1-k3s/config").await.unwrap();
        assert_eq!(status, 501);
        assert!(String::from_utf8(body).unwrap().contains("agents cannot join this version of the server yet"));
    }

    #[tokio::test]
    async fn an_unreadable_authority_is_an_error_not_an_empty_answer() {
        let (status, _) = get(&Routes::new(Path::new("/nonexistent")), "/cacerts").await.unwrap();
        assert_eq!(status, 500);
    }
}
