//! `/static/*`: files of `<data>/server/static`, public. Charts that the add-ons install are fetched from here.

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::fs::File;
use tokio_util::io::ReaderStream;
use tracing::error;

use crate::front::{Body, BodyError, Status, empty};

/// The file at `path` (percent-encoded, relative) below `root`, streamed. Folders are not listed.
pub(super) async fn answer(root: &Path, method: &Method, path: &str) -> Response<Body> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Status::method_not_allowed("static files can only be read").into();
    }
    let missing = || Status::not_found(format!("there is no static file {path}"));
    let Some(file) = below(root, path) else { return missing().into() };
    let (file, length) = match open(&file).await {
        Ok(Some(opened)) => opened,
        Ok(None) => return missing().into(),
        Err(error) => {
            error!(path = %file.display(), %error, "Cannot read a static file.");
            return Status::internal(format!("the server cannot read the static file {path}; its log says why")).into();
        }
    };

    let body = if method == Method::HEAD {
        empty()
    } else {
        StreamBody::new(ReaderStream::with_capacity(file, 64 << 10).map_ok(Frame::data).map_err(BodyError::from))
            .boxed_unsync()
    };
    let mut response = Response::new(body);
    let kind = if path.ends_with(".tgz") { "application/gzip" } else { "application/octet-stream" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

/// The file and its length; `None` if there is none, or something else.
async fn open(path: &Path) -> std::io::Result<Option<(File, u64)>> {
    use std::io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    let file = match File::open(path).await {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidFilename) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata().await?;
    Ok(metadata.is_file().then_some((file, metadata.len())))
}

/// The path below `root` that is meant, if each of its parts is a plain name.
fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let mut file = root.to_owned();
    for part in path.split('/') {
        let name = percent_decoded(part)?;
        if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
            return None;
        }
        file.push(name);
    }
    Some(file)
}

fn percent_decoded(part: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            decoded.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_served_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("static");
        std::fs::create_dir_all(root.join("charts")).unwrap();
        std::fs::write(root.join("charts/traefik-39.0.5+up39.0.5.tgz"), "chart").unwrap();
        std::fs::write(dir.path().join("token"), "secret").unwrap();

        for path in ["charts/traefik-39.0.5+up39.0.5.tgz", "charts/traefik-39.0.5%2Bup39.0.5.tgz"] {
            let response = answer(&root, &Method::GET, path).await;
            assert_eq!(response.headers()["content-type"], "application/gzip");
            assert_eq!(response.headers()["content-length"], "5");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "chart");
        }
        let response = answer(&root, &Method::HEAD, "charts/traefik-39.0.5+up39.0.5.tgz").await;
        assert_eq!(response.headers()["content-length"], "5");
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());

        for path in [
            "",
            "charts",
            "charts/",
            "charts/none.tgz",
            "charts/traefik-39.0.5+up39.0.5.tgz/x",
            "../token",
            "%2e%2e/token",
            "charts/../../token",
            "..%2ftoken",
            "charts//traefik-39.0.5+up39.0.5.tgz",
            "/etc/passwd",
            "%2Fetc%2Fpasswd",
            "%00",
            "%",
            "%4",
            "%zz",
            "%ff",
        ] {
            assert_eq!(answer(&root, &Method::GET, path).await.status(), 404, "{path}");
        }
        assert_eq!(answer(&root, &Method::PUT, "charts/x").await.status(), 405);
    }
}
