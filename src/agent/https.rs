//! Requests to whichever server the balancer chooses, and the time that it is given.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use k3s_balancer::Balancer;
use k3s_supervisor_api::{Client, RequestError};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::Instant;

/// How long a server may take for one request, at first: what k3s grants.
const PATIENCE: Duration = Duration::from_secs(10);
/// However slow both ends are; another server should be tried some time.
const LONGEST_PATIENCE: Duration = Duration::from_secs(120);

/// Makes requests with one identity and one idea of whom to trust.
#[derive(Clone)]
pub(crate) struct Https {
    balancer: Balancer,
    client: Client,
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

impl Https {
    pub(crate) fn new(balancer: Balancer, tls: ClientConfig, patience: Patience) -> Self {
        // k3s' agents come by loopback and ask for it: every server's certificate names it.
        let client = Client::new(tls, ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()));
        Self { balancer, client, patience }
    }

    /// The body of a successful answer.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Bytes, RequestError> {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("127.0.0.1"));
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let (patience, began) = (self.patience.now(), Instant::now());
        // The balancer counts a connection for as long as the link is there.
        let mut link = None;
        let connect = async {
            let (stream, of_stream) = self.balancer.connect().await.map_err(io::Error::other)?;
            link = Some(of_stream);
            Ok::<_, io::Error>(stream)
        };
        let answer = self.client.send(connect, request, patience).await;
        match &answer {
            Ok(_) => self.patience.set(4 * began.elapsed()),
            Err(RequestError::Timeout(_)) => self.patience.set(2 * patience),
            Err(_) => {}
        }
        drop(link);
        answer
    }
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
            default: Some(Address::new("127.0.0.1", listener.local_addr().unwrap().port())),
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
