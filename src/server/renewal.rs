//! Certificates renewed while the server runs, in place: what is due at a start is due in between too.
//!
//! Twice a day the same is done that a start does: each leaf with a third of its life left or less is issued again, for the key that it
//! has. Most of those who hold one read it anew by themselves: kube-apiserver, kubelet and every client of client-go. The others:
//!
//! ```text
//! the front's certificate, and its client certificate ──► shown from the next handshake on
//! our own clients of the API                           ──► made anew: `renewed` tells
//! kube-apiserver's way into the tunnels                ──► kube-apiserver is started again
//! ```

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use k3s_components::Paths;
use k3s_config::server::{EgressMode, ServerConfig};
use k3s_files::FileError;
use k3s_pki::ServerPki;
use k3s_supervise::Supervisor;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    Error,
    bootstrap::{self, FrontTls, Host},
    front::CurrentCertificate,
};

/// How often it is looked: a certificate that is due has months left.
const INTERVAL: Duration = Duration::from_secs(12 * 3600);

/// Renews the certificates of one server.
pub(crate) struct Renewal {
    /// What the front shows its clients.
    front: Arc<CurrentCertificate>,
    /// What it shows kube-apiserver.
    proxy: Arc<CurrentCertificate>,
    /// Changes whenever our own clients of the API have to be made anew.
    renewed: watch::Sender<()>,
}

/// The certificates whose holders do not read them anew.
#[derive(PartialEq, Eq)]
struct Held {
    /// `client-supervisor`: our own.
    supervisor: Option<Vec<u8>>,
    /// `client-kube-apiserver`: kube-apiserver's for the tunnels.
    kube_apiserver: Option<Vec<u8>>,
}

impl Renewal {
    /// Of what the front uses.
    pub(crate) fn new(tls: &FrontTls) -> Self {
        let (front, proxy) = (tls.certificate.clone(), tls.upstream.proxy_certificate.clone());
        Self { front, proxy, renewed: watch::Sender::new(()) }
    }

    /// Told whenever our own clients of the API have to be made anew.
    pub(crate) fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// Renews what is due, until `shutdown`. What fails is told, and tried again the next time.
    pub(crate) async fn run(
        &self,
        config: &ServerConfig,
        paths: &Paths,
        host: &Host,
        supervisor: &Supervisor,
        shutdown: CancellationToken,
    ) {
        while shutdown.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
            let renewed = self.renew(config, paths, host, supervisor, SystemTime::now()).await;
            match renewed.and_then(|pki| bootstrap::administrator(config, &pki)) {
                Ok(()) => supervisor.clear("certificates"),
                Err(error) => {
                    error!(%error, "The certificates cannot be renewed; trying again in 12 h.");
                    supervisor.warn("certificates", format!("The certificates cannot be renewed: {error}."));
                }
            }
        }
    }

    async fn renew(
        &self,
        config: &ServerConfig,
        paths: &Paths,
        host: &Host,
        supervisor: &Supervisor,
        now: SystemTime,
    ) -> Result<ServerPki, Error> {
        let before = Held::read(paths)?;
        let pki = bootstrap::certificates(config, paths, host, now)?;
        let FrontTls { certificate, upstream, .. } = bootstrap::front_tls(config, &pki, now)?;
        self.front.take_over(&certificate);
        self.proxy.take_over(&upstream.proxy_certificate);
        let after = Held::read(paths)?;
        if before.kube_apiserver != after.kube_apiserver && config.egress_mode != EgressMode::Disabled {
            info!("kube-apiserver reads its certificate for the tunnels at its start only, and is started again.");
            // It is not there only if the server stops.
            let _ = supervisor.restart("kube-apiserver").await;
        }
        if before.supervisor != after.supervisor {
            self.renewed.send_replace(());
        }
        Ok(pki)
    }
}

impl Held {
    fn read(paths: &Paths) -> Result<Self, FileError> {
        let read = |name: &str| k3s_files::read(&paths.tls(name));
        Ok(Self { supervisor: read("client-supervisor.crt")?, kube_apiserver: read("client-kube-apiserver.crt")? })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs, path::PathBuf};

    use k3s_config::Environment;
    use k3s_supervise::Options;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn what_is_due_is_renewed_and_taken_over_and_the_keys_stay() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment {
            variables: HashMap::new(),
            hostname: "edge".into(),
            directory: PathBuf::from("/"),
            config_file: PathBuf::from("/nonexistent/config.yaml"),
        };
        let args = [format!("--data-dir={}", dir.path().display()), "--disable-agent".to_owned()];
        let (config, _) = k3s_config::parse_server(args.map(Into::into), &environment).unwrap();
        let paths = Paths::new(dir.path(), dir.path().join("run"));
        let host = Host { name: "edge".into(), ips: vec![[192, 0, 2, 1].into()], hostname: "edge".into() };
        let supervisor = Supervisor::new(Options::at(dir.path())).unwrap();
        let files = ["client-supervisor.crt", "client-supervisor.key", "dynamic-cert.json"];
        let read = || files.map(|name| fs::read(paths.tls(name)).unwrap());

        let begin = SystemTime::now();
        let pki = bootstrap::certificates(&config, &paths, &host, begin).unwrap();
        let tls = bootstrap::front_tls(&config, &pki, begin).unwrap();
        let renewal = Renewal::new(&tls);
        let mut renewed = renewal.renewed();
        let (first, shown) = (read(), format!("{:?}", tls.certificate));

        renewal.renew(&config, &paths, &host, &supervisor, begin + 240 * DAY).await.unwrap();
        assert!(read() == first && !renewed.has_changed().unwrap(), "at two thirds, not before");
        renewal.renew(&config, &paths, &host, &supervisor, begin + 246 * DAY).await.unwrap();
        let second = read();
        assert!(second[0] != first[0] && second[1] == first[1] && second[2] != first[2]);
        assert!(renewed.has_changed().unwrap());
        assert_ne!(format!("{:?}", tls.certificate), shown, "the front shows the new one");
        renewed.mark_unchanged();
    }
}
