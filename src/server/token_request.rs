//! Asking a server of the cluster to exchange its token: `PUT /v1-k3s/token`, as `k3s token rotate` does.

use std::{io, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k3s_config::agent::ServerUrl;
use k3s_identity::{CaHash, Token, TokenError, TokenFiles};
use k3s_pki::Unreadable;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// A rotation waits for the datastore, which may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than any answer has.
const LARGEST: usize = 64 << 10;

/// Why a server was not asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TokenRequestError {
    /// Only a server knows the authorities and the token.
    #[error("{path} is not there: run this on a server, and name its directory with --data-dir")]
    NotAServer {
        /// The authority's file.
        path: String,
    },
    /// The authority's file.
    #[error("{path} cannot be read: {source}")]
    Authority {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Unreadable,
    },
    /// Files of the server.
    #[error(transparent)]
    Identity(#[from] k3s_identity::Error),
    /// Files that cannot be read.
    #[error(transparent)]
    File(#[from] k3s_files::FileError),
    /// What was given as the token in use.
    #[error("--token is not usable: {0}")]
    Token(#[from] TokenError),
    /// It is the token of another cluster.
    #[error("--token belongs to another cluster: its hash is not that of this server's authority")]
    OtherCluster,
    /// The server's name can be on no certificate.
    #[error("{0}")]
    Name(#[from] InvalidDnsNameError),
    /// Nobody answers.
    #[error("{server} does not answer ({source}): is the server running? `k3s status` tells")]
    Unreachable {
        /// Who was asked.
        server: ServerUrl,
        /// Why there is no answer.
        source: io::Error,
    },
    /// The server said no.
    #[error("{server} did not exchange its token ({status}): {message}")]
    Refused {
        /// Who was asked.
        server: ServerUrl,
        /// HTTP's code.
        status: StatusCode,
        /// Its own words.
        message: String,
    },
}

/// Asks the server at `server` to exchange its token for `new`, or for a random one. What is needed for that lies in `dir`
/// (`<data>/server`) of this server: the authority, and the token in use unless it is `given`.
///
/// # Errors
/// [`TokenRequestError`]; unless the server's own words say otherwise, the old token is in force.
pub async fn request_rotation(
    dir: &Path,
    server: &ServerUrl,
    given: Option<&str>,
    new: Option<&str>,
) -> Result<(), TokenRequestError> {
    let path = dir.join("tls/server-ca.crt");
    let shown = || path.display().to_string();
    let authority = k3s_files::read(&path)?.ok_or_else(|| TokenRequestError::NotAServer { path: shown() })?;
    let unreadable = |source| TokenRequestError::Authority { path: shown(), source };
    let password = match given {
        Some(text) => {
            let token: Token = text.parse()?;
            let own = CaHash::of(&authority).map_err(unreadable)?;
            if token.ca_hash.as_ref().is_some_and(|pinned| *pinned != own) {
                return Err(TokenRequestError::OtherCluster);
            }
            token.password()?.clone()
        }
        None => {
            let missing = || TokenRequestError::NotAServer { path: dir.join("token").display().to_string() };
            TokenFiles::password(dir)?.ok_or_else(missing)?
        }
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&authority).flatten());
    let login = BASE64_STANDARD.encode(format!("server:{}", password.expose()));
    let mut login = HeaderValue::try_from(format!("Basic {login}")).expect("base64 is ASCII");
    login.set_sensitive(true);
    let request = Request::put("/v1-k3s/token")
        .header(header::HOST, server.host.as_str())
        .header(header::AUTHORIZATION, login)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(json!({"newToken": new.unwrap_or_default()}).to_string()))
        .expect("the path is one, and a host is a header's value");
    let name = ServerName::try_from(server.host.clone())?;
    let unreachable = |source| TokenRequestError::Unreachable { server: server.clone(), source };
    let answered = timeout(PATIENCE, ask(server, name, roots, request)).await;
    let (status, body) = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
    if status.is_success() {
        return Ok(());
    }
    // A Kubernetes `Status`.
    let message =
        serde_json::from_slice(&body).ok().and_then(|it: serde_json::Value| Some(it["message"].as_str()?.to_owned()));
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    Err(TokenRequestError::Refused { server: server.clone(), status, message })
}

async fn ask(
    server: &ServerUrl,
    name: ServerName<'static>,
    roots: RootCertStore,
    request: Request<Full<Bytes>>,
) -> io::Result<(StatusCode, Bytes)> {
    let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(io::Error::other)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        // It has been read to its end; what was read is the answer.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(io::Error::other(error)),
        },
    }
}
