//! Asking a server.

use std::{fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use k3s_http::{Answer, Status, Unread, exchange};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// More than any answer of a server has.
const LARGEST: usize = 1 << 20;

/// Makes requests with one identity and one idea of whom to trust, each on a connection of its own, as k3s' agents do.
#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    name: ServerName<'static>,
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody accepts a connection.
    #[error(transparent)]
    Connect(io::Error),
    /// Whoever accepted is not who it should be, or does not want us.
    #[error("the TLS handshake with the server failed: {0}")]
    Handshake(#[source] io::Error),
    /// Not HTTP, or broken off.
    #[error("the server broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came.
    #[error("the server did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The answer has begun and cannot be read.
    #[error("the server's answer cannot be read: {0}")]
    Unread(#[from] Unread),
    /// The server understood and said no, or not yet.
    #[error("the server answers {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// HTTP's code.
        status: StatusCode,
        /// The server's own words, where it has any.
        message: String,
    },
}

impl RequestError {
    /// The code of a server that understood.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Client {
    /// Shakes hands by `tls`, with a server whose certificate has to name `name`.
    pub fn new(tls: ClientConfig, name: ServerName<'static>) -> Self {
        Self { tls: TlsConnector::from(Arc::new(tls)), name }
    }

    /// The body of a successful answer to `request`, over what `connect` brings.
    ///
    /// # Errors
    /// Whatever keeps the answer from coming within `patience`, and an answer of another code than 2xx.
    pub async fn send<S>(
        &self,
        connect: impl Future<Output = io::Result<S>>,
        request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Bytes, RequestError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let answered = async {
            let stream = connect.await.map_err(RequestError::Connect)?;
            let stream = self.tls.connect(self.name.clone(), stream).await.map_err(RequestError::Handshake)?;
            let Answer { status, body } = exchange(TokioIo::new(stream), request, LARGEST).await?;
            let body = body?;
            if status.is_success() {
                Ok(body)
            } else {
                Err(RequestError::Refused { status, message: Status::message_in(&body) })
            }
        };
        timeout(patience, answered).await.unwrap_or(Err(RequestError::Timeout(patience)))
    }
}
