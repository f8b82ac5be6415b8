//! Port 6443: TLS ends here, and so do clients' certificates.
//!
//! What a [`Service`] knows is answered here; all else goes to kube-apiserver on loopback, over HTTP/2, streamed
//! both ways. Who a client is by its certificate is verified once for a connection and told to kube-apiserver in `X-Remote-*`
//! headers, on connections of which kube-apiserver knows by our own client certificate that it may believe them. Requests
//! with a token go on other connections and speak for themselves; those with nothing are answered here.

mod abuse;
mod authentication;
mod backpressure;
mod body;
mod coalescing;
mod connection;
mod connector;
mod gateway;
mod headers;
mod listener;
mod metrics;
mod paced;
mod party;
mod pool;
mod rank;
mod service;
mod slots;
mod tasks;
mod thread;
mod tokens;
mod unauthenticated;
mod upgrade;
mod upstream;

#[cfg(test)]
mod strangers;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k3s_listener::Limits;
use k3s_pki::{ClientCa, CurrentCertificate, TlsPolicy};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub use listener::serve_starting;
pub use service::{Connection, Service};
pub use tasks::Tasks;
pub use thread::serve_on_thread;
pub use unauthenticated::Unauthenticated;
pub use upstream::Upstream;

/// How the kube-apiserver behind a front does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeApiserver {
    /// It is not ready yet.
    Starting,
    /// It answers.
    Ready,
    /// There is none (`--disable-apiserver`).
    Disabled,
}

/// What [`serve_on_thread`] serves.
#[derive(Debug)]
pub struct Front {
    /// What clients see.
    pub certificate: Arc<CurrentCertificate>,
    /// Which TLS they may speak.
    pub tls: TlsPolicy,
    /// What clients' certificates are checked by.
    pub client_ca: Arc<ClientCa>,
    /// How many connections there may be.
    pub limits: Limits,
    /// kube-apiserver.
    pub upstream: Upstream,
    /// Who answers requests without credentials.
    pub unauthenticated: Unauthenticated,
    /// How kube-apiserver does; unless it is ready, its requests are answered with 503.
    pub kube_apiserver: watch::Receiver<KubeApiserver>,
    /// What is answered here.
    pub service: Arc<dyn Service>,
    /// What `/metrics` shows beside kube-apiserver's, where it is asked for (`--supervisor-metrics`).
    pub metrics: Option<Registry>,
}
