//! What a server is asked for with the rights of a server: another token (`PUT /v1-k3s/token`), other authorities
//! (`PUT /v1-k3s/cert/cacerts`), how Secrets are encrypted (`/v1-k3s/encrypt/…`). `k3s token rotate`, `k3s certificate rotate-ca` and
//! `k3s secrets-encrypt` ask so.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use k3s_config::agent::ServerUrl;
use k3s_identity::{CaHash, Token, TokenError, TokenFiles};
use k3s_pki::{Unreadable, client_config};
use k3s_supervisor_api::{
    Client, EncryptionRequest, EncryptionStatus, Replacement, RequestError, TokenRotation, basic, paths,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject},
};
use sysexits::ExitCode;
use tokio::net::TcpStream;

use crate::bootstrap_data;

/// What is asked for waits for the datastore, which may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Writing all Secrets again takes long where there are many.
const PATIENCE_WITH_SECRETS: Duration = Duration::from_secs(660);
/// The account that servers log in as.
const USER: &str = "server";

/// Why a server was not asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ServerRequestError {
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
    /// There is nothing to ask for.
    #[error("none of k3s' certificate authorities and keys is below {}: the files are expected as tls/server-ca.crt, tls/server-ca.key and so on there", path.display())]
    NoAuthorities {
        /// The folder that was named.
        path: PathBuf,
    },
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
        source: RequestError,
    },
    /// It is another kind of server.
    #[error("{server} answers what this version of k3s does not understand")]
    NotUnderstood {
        /// Who was asked.
        server: ServerUrl,
    },
    /// The server said no.
    #[error("{server} did not {wanted} ({status}): {message}")]
    Refused {
        /// Who was asked.
        server: ServerUrl,
        /// For what.
        wanted: &'static str,
        /// HTTP's code.
        status: StatusCode,
        /// Its own words.
        message: String,
    },
}

impl ServerRequestError {
    /// The process's exit code, after sysexits.h.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotAServer { .. } | Self::NoAuthorities { .. } => ExitCode::NoInput,
            Self::Token(_) | Self::OtherCluster | Self::Name(_) => ExitCode::Usage,
            Self::Authority { .. } | Self::Identity(_) => ExitCode::Config,
            Self::File(_) => ExitCode::IoErr,
            Self::Refused { status, .. } => match *status {
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => ExitCode::DataErr,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ExitCode::NoPerm,
                _ => ExitCode::Unavailable,
            },
            Self::NotUnderstood { .. } => ExitCode::Protocol,
            Self::Unreachable { .. } => ExitCode::Unavailable,
        }
    }
}

/// A server, and what proves to it that we may ask.
#[derive(Debug)]
pub struct ServerAccess {
    server: ServerUrl,
    client: Client,
    /// What checks the server, PEM.
    authority: Vec<u8>,
    login: HeaderValue,
}

/// How the tokens of a cluster fare when its authorities are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinnedTokens {
    /// They pin the same root as before.
    Hold,
    /// Whole tokens (`K10…`) of before are of another cluster, as it were.
    Change,
}

impl ServerAccess {
    /// To the server at `server`. What is needed for that lies in `dir` (`<data>/server`) of this server: the authority, and the token in
    /// use unless it is `given`.
    ///
    /// # Errors
    /// Whatever is missing, or does not fit.
    pub fn new(dir: &Path, server: &ServerUrl, given: Option<&str>) -> Result<Self, ServerRequestError> {
        let path = dir.join("tls/server-ca.crt");
        let shown = || path.display().to_string();
        let authority = k3s_files::read(&path)?.ok_or_else(|| ServerRequestError::NotAServer { path: shown() })?;
        let password = match given {
            Some(text) => {
                let token: Token = text.parse()?;
                let own =
                    CaHash::of(&authority).map_err(|source| ServerRequestError::Authority { path: shown(), source })?;
                if token.ca_hash.as_ref().is_some_and(|pinned| *pinned != own) {
                    return Err(ServerRequestError::OtherCluster);
                }
                token.password()?.clone()
            }
            None => {
                let missing = || ServerRequestError::NotAServer { path: dir.join("token").display().to_string() };
                TokenFiles::password(dir)?.ok_or_else(missing)?
            }
        };
        let client = Client::new(tls(&authority), ServerName::try_from(server.host.clone())?);
        Ok(Self { server: server.clone(), client, authority, login: basic(USER, password.expose()) })
    }

    /// Asks it to exchange its token for `new`, or for a random one.
    ///
    /// # Errors
    /// Unless the server's own words say otherwise, the old token is in force.
    pub async fn rotate_token(&self, new: Option<&str>) -> Result<(), ServerRequestError> {
        let rotation = TokenRotation { new_token: new.map(str::to_owned) };
        let body = serde_json::to_vec(&rotation).expect("a text is JSON");
        self.put(paths::TOKEN, body, "exchange its token", PATIENCE).await
    }

    /// Asks it how Secrets are encrypted.
    ///
    /// # Errors
    /// There is no answer that can be understood.
    pub async fn encryption_status(&self) -> Result<EncryptionStatus, ServerRequestError> {
        let wanted = "tell how Secrets are encrypted";
        let answer = self.ask(Method::GET, paths::ENCRYPTION_STATUS, Bytes::new(), wanted, PATIENCE).await?;
        serde_json::from_slice(&answer).map_err(|_| ServerRequestError::NotUnderstood { server: self.server.clone() })
    }

    /// Asks it to encrypt Secrets in another way, and waits until that is done where it is told so.
    ///
    /// # Errors
    /// Unless the server's own words say otherwise, nothing has changed.
    pub async fn change_encryption(
        &self,
        request: &EncryptionRequest,
        wanted: &'static str,
    ) -> Result<(), ServerRequestError> {
        let body = serde_json::to_vec(request).expect("texts are JSON");
        self.put(paths::ENCRYPTION_CONFIG, body, wanted, PATIENCE_WITH_SECRETS).await
    }

    /// Asks it to replace the cluster's authorities and service-account keys by those below `folder`, which is laid out as
    /// `<data>/server`; what is not there stays.
    ///
    /// # Errors
    /// Unless the server did not answer to the end, nothing has changed.
    pub async fn replace_authorities(
        &self,
        folder: &Path,
        replacement: Replacement,
    ) -> Result<PinnedTokens, ServerRequestError> {
        let offered = bootstrap_data::from_folder(folder)?;
        if offered.files.is_empty() {
            return Err(ServerRequestError::NoAuthorities { path: folder.to_owned() });
        }
        self.put(&replacement.target(), offered.to_json(), "replace its certificate authorities", PATIENCE).await?;
        // The server has found it readable.
        let pinned_by = |bundle: &[u8]| CaHash::of(bundle).ok();
        let hold = offered.server_ca().is_none_or(|new| pinned_by(new) == pinned_by(&self.authority));
        Ok(if hold { PinnedTokens::Hold } else { PinnedTokens::Change })
    }

    async fn put(
        &self,
        path: &str,
        body: impl Into<Bytes>,
        wanted: &'static str,
        patience: Duration,
    ) -> Result<(), ServerRequestError> {
        self.ask(Method::PUT, path, body.into(), wanted, patience).await.map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        wanted: &'static str,
        patience: Duration,
    ) -> Result<Bytes, ServerRequestError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.server.host.as_str())
            .header(header::AUTHORIZATION, &self.login)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("the path is one, and a host is a header's value");
        let connect = TcpStream::connect((self.server.host.as_str(), self.server.port));
        let server = self.server.clone();
        self.client.send(connect, request, patience).await.map_err(|error| match error {
            RequestError::Refused { status, message } => {
                ServerRequestError::Refused { server, wanted, status, message }
            }
            source => ServerRequestError::Unreachable { server, source },
        })
    }
}

/// Trusts servers that an authority vouches for, PEM.
fn tls(authority: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(authority).flatten());
    client_config(roots).with_no_client_auth()
}
