//! HTTPS requests to whichever server the balancer chooses, one connection each, as k3s' agents make them.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k3s_balancer::{Balancer, NoServer};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// How long a server may take for one request, at first: what k3s grants.
const PATIENCE: Duration = Duration::from_secs(10);
/// However slow both ends are; another server should be tried some time.
const LONGEST_PATIENCE: Duration = Duration::from_secs(120);
/// More than any answer of a server has.
const LARGEST: usize = 1 << 20;

/// Makes requests with one identity and one idea of whom to trust.
#[derive(Clone)]
pub(crate) struct Https {
    balancer: Balancer,
    tls: TlsConnector,
    patience: Patience,
}

/// How long a server may take for one request; clones are handles to the same. It doubles with each request that was given up, and goes by
/// what the last answer took: a handshake alone may take longer than k3s grants on a small machine that starts everything at once.
#[derive(Debug, Clone)]
pub(crate) struct Patience(Arc<AtomicU64>);

impl Default for Patience {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(millis(PATIENCE))))
    }
}

impl Patience {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, patience: Duration) {
        self.0.store(millis(patience.clamp(PATIENCE, LONGEST_PATIENCE)), Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody accepts a connection.
    #[error(transparent)]
    NoServer(#[from] NoServer),
    /// Whoever accepted is not who it should be, or does not want us.
    #[error("the TLS handshake with the server failed: {0}")]
    Handshake(#[source] io::Error),
    /// Not HTTP, or broken off.
    #[error("the server broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came.
    #[error("the server did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Reading the answer failed for no reason that is known.
    #[error("the server's answer cannot be read: {0}")]
    Unread(Box<dyn std::error::Error + Send + Sync>),
    /// More came than there can be to say.
    #[error("the server's answer is larger than {} MiB", LARGEST >> 20)]
    TooLarge,
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
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Https {
    pub(crate) fn new(balancer: Balancer, tls: ClientConfig, patience: Patience) -> Self {
        Self { balancer, tls: TlsConnector::from(Arc::new(tls)), patience }
    }

    /// The body of a successful answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Bytes, RequestError> {
        let (patience, began) = (self.patience.now(), Instant::now());
        match timeout(patience, self.exchange(request)).await {
            Ok(answer) => {
                if answer.is_ok() {
                    self.patience.set(4 * began.elapsed());
                }
                answer
            }
            Err(_) => {
                self.patience.set(2 * patience);
                Err(RequestError::Timeout(patience))
            }
        }
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Bytes, RequestError> {
        let (stream, _link) = self.balancer.connect().await?;
        // k3s' agents come by loopback and ask for it: every server's certificate names it.
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let stream = self.tls.connect(name, stream).await.map_err(RequestError::Handshake)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("127.0.0.1"));
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(unread)?.to_bytes();
            if status.is_success() { Ok(body) } else { Err(RequestError::Refused { status, message: words(&body) }) }
        };
        tokio::pin!(connection);
        tokio::select! {
            answer = answered => answer,
            // It ends first where the server breaks off: the request knows why.
            Err(error) = &mut connection => Err(error.into()),
        }
    }
}

fn unread(error: Box<dyn std::error::Error + Send + Sync>) -> RequestError {
    match error.downcast::<hyper::Error>() {
        Ok(error) => RequestError::Broken(*error),
        Err(error) if error.is::<LengthLimitError>() => RequestError::TooLarge,
        // `Limited` has no third kind.
        Err(error) => RequestError::Unread(error),
    }
}

/// The message of a Kubernetes `Status`, or a short text.
fn words(body: &[u8]) -> String {
    let status: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = status.as_ref().and_then(|status| status["message"].as_str());
    let text = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    text.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use k3s_balancer::{Address, Options};
    use tokio::net::TcpListener;

    use super::*;
    use crate::trust::Trust;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_slow_is_given_more_time_with_each_try() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // It accepts, and says nothing.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let balancer = Balancer::new(Options {
            name: "test".into(),
            url: format!("https://{}", listener.local_addr().unwrap()),
            default: Address::new("127.0.0.1", listener.local_addr().unwrap().port()),
            state_file: dir.path().join("balancer.json"),
        })
        .unwrap();
        let patience = Patience::default();
        let https = Https::new(balancer, Trust::Authorities(Bytes::new()).tls(None).unwrap(), patience.clone());
        for seconds in [10, 20, 40, 80, 120, 120] {
            let error = https.send(Request::new(Full::default())).await.unwrap_err().to_string();
            assert_eq!(error, format!("the server did not answer within {seconds} s"));
        }
        patience.set(4 * Duration::from_millis(50));
        assert_eq!(patience.now(), PATIENCE);
    }
}
