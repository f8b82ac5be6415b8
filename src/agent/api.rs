//! Talking to the API as one of this machine's identities.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use k3s_components::Paths;
use k3s_controllers::{ClusterView, NodeScope};
use k3s_supervise::{Backoff, Gate};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::{Mutex, watch};
use tower::service_fn;
use tracing::{debug, warn};

use crate::{Error, error::chain};

/// What a client does with a request to an API that is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhileNotReady {
    /// kube-rs' own retries.
    Retry,
    /// The caller has no time for that.
    Fail,
}

/// Told whenever certificates that this machine's clients show have been renewed, and their files replaced.
pub type Renewed = watch::Receiver<()>;

/// Between questions whether the API answers: often while a server starts, rarely while it stays away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A client with the server and the credentials of a kubeconfig, as they are now.
///
/// # Errors
/// The kubeconfig, or a file that it names, is missing or cannot be used, or it wants a proxy.
pub async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    connect(kubeconfig, WhileNotReady::Retry).await
}

/// The same, for questions on which others wait: an API that is not ready is not asked again.
pub(crate) async fn hasty_client(kubeconfig: &Path) -> Result<Client, Error> {
    connect(kubeconfig, WhileNotReady::Fail).await
}

/// A client that goes by a kubeconfig of ours and the files that it names for as long as it lives: from the first request after `renewed`
/// tells, by what they hold then. Requests under way end as they began.
///
/// It goes on with new connections, as client-go does: one that stands is known by the certificate that it was made with, and
/// kube-apiserver asks with each request whether that has ended.
///
/// # Errors
/// As [`client`], at the beginning. Later the client of before is used for as long as the files cannot be.
pub async fn lasting_client(kubeconfig: impl Into<PathBuf>, renewed: Renewed) -> Result<Client, Error> {
    let kubeconfig = kubeconfig.into();
    let first = client(&kubeconfig).await?;
    let namespace = first.default_namespace().to_owned();
    let lasting = Arc::new(Lasting { kubeconfig, current: Mutex::new((first, renewed)) });
    let send = move |request: Request<Body>| {
        let lasting = lasting.clone();
        async move { lasting.send(request).await }
    };
    Ok(Client::new(service_fn(send), namespace))
}

/// What the node called `name` sees of the cluster, by the certificates that it has at the time.
pub(crate) async fn view_of_node(
    name: &str,
    paths: &Paths,
    scope: NodeScope,
    renewed: &Renewed,
) -> Result<ClusterView, Error> {
    let client = |kubeconfig| lasting_client(kubeconfig, renewed.clone());
    let (kubelet, controller) =
        (client(paths.kubelet_kubeconfig()).await?, client(paths.k3s_controller_kubeconfig()).await?);
    Ok(ClusterView::of_node(name, kubelet, controller, scope))
}

/// Waits until the API is ready for the holder of a kubeconfig; `gate` tells what is missing.
pub async fn until_api_ready(kubeconfig: &Path, gate: &Gate) {
    let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
    loop {
        // Made anew each time: its certificate may have been replaced meanwhile.
        let asked = async {
            let request = Request::get("/readyz").body(Vec::new()).expect("the path is one");
            let answer = client(kubeconfig).await.map_err(|error| chain(&error))?;
            answer.request_text(request).await.map_err(|error| chain(&error))
        };
        match asked.await {
            Ok(_) => return,
            Err(error) => gate.waiting(error),
        }
        backoff.wait().await;
    }
}

async fn connect(kubeconfig: &Path, while_not_ready: WhileNotReady) -> Result<Client, Error> {
    let connect = async || -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        let kubeconfig = without_proxy(Kubeconfig::read_from(kubeconfig)?)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.proxy_url = None;
        config.default_retry = while_not_ready == WhileNotReady::Retry;
        Ok(Client::try_from(config)?)
    };
    connect().await.map_err(|source| Error::Kubeconfig { path: kubeconfig.to_path_buf(), source })
}

/// The kubeconfig with a placeholder in the place of a proxy's address: without one, the client would take `HTTPS_PROXY`, which is for
/// components and never for our own connections.
fn without_proxy(mut kubeconfig: Kubeconfig) -> Result<Kubeconfig, NamesProxy> {
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        if cluster.proxy_url.replace(NO_PROXY.to_owned()).is_some_and(|url| !url.is_empty()) {
            return Err(NamesProxy);
        }
    }
    Ok(kubeconfig)
}

const NO_PROXY: &str = "http://unused.invalid";

/// A user's kubeconfig that wants its cluster reached in a way that is not served.
#[derive(Debug, thiserror::Error)]
#[error("it names a proxy (proxy-url), and k3s' own verbs use none: use `k3s kubectl`, or a kubeconfig without it")]
struct NamesProxy;

/// What a client that lasts makes its requests with.
struct Lasting {
    kubeconfig: PathBuf,
    current: Mutex<(Client, Renewed)>,
}

impl Lasting {
    async fn send(&self, request: Request<Body>) -> kube::Result<Response<Body>> {
        let client = self.current().await;
        client.send(request).await
    }

    /// The client of before stays where the files cannot be used: its certificate has months left, and the next request tries again.
    async fn current(&self) -> Client {
        let mut current = self.current.lock().await;
        let (now, renewed) = &mut *current;
        // Whoever renewed is gone: nothing changes any more.
        if renewed.has_changed().unwrap_or(false) {
            renewed.mark_unchanged();
            let kubeconfig = self.kubeconfig.display();
            match client(&self.kubeconfig).await {
                Ok(client) => {
                    *now = client;
                    debug!(%kubeconfig, "The API is asked with the renewed certificate.");
                }
                Err(error) => {
                    renewed.mark_changed();
                    warn!(%kubeconfig, error = chain(&error), "The renewed certificate cannot be used; the API is asked with the old one.");
                }
            }
        }
        now.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use k3s_pki::AgentPki;

    use super::*;
    use crate::testing::{LIFETIME, TestServer};

    const KUBECONFIG: &str = "K3S_TEST_KUBECONFIG";

    /// A process of its own: variables are not set in one that has threads.
    #[test]
    fn our_own_connections_go_by_no_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        let kubeconfig = |proxy: &str| {
            let yaml = format!(
                "clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:6443'{proxy}}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
                 users: [{{name: u, user: {{token: t}}}}]\ncurrent-context: c\n"
            );
            fs::write(&file, yaml).unwrap();
            let mut test = Command::new(std::env::current_exe().unwrap());
            test.args(["api::tests::a_client_is_made", "--exact", "--ignored"]).env(KUBECONFIG, &file);
            test.envs([("HTTPS_PROXY", "http://proxy:3128"), ("https_proxy", "no address at all")]);
            test.output().unwrap()
        };
        for unset in ["", ", proxy-url: ''"] {
            let made = kubeconfig(unset);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        }
        let refused = kubeconfig(", proxy-url: 'http://proxy:3128'");
        let output = [refused.stdout, refused.stderr].concat();
        assert!(String::from_utf8_lossy(&output).contains("use `k3s kubectl`"), "{}", String::from_utf8_lossy(&output));
    }

    #[tokio::test]
    #[ignore = "a part of `our_own_connections_go_by_no_proxy`"]
    async fn a_client_is_made() {
        let Some(kubeconfig) = std::env::var_os(KUBECONFIG) else { return };
        if let Err(error) = client(kubeconfig.as_ref()).await {
            panic!("{}", chain(&error));
        }
    }

    #[test]
    fn kubeconfigs_are_where_they_are_written() {
        let paths = Paths::new("/data", "/run");
        let pki = AgentPki::at(&paths.agent());
        assert_eq!(pki.kubelet_kubeconfig, paths.kubelet_kubeconfig());
        assert_eq!(pki.kube_proxy_kubeconfig, paths.kube_proxy_kubeconfig());
        assert_eq!(pki.k3s_controller_kubeconfig, paths.k3s_controller_kubeconfig());
    }

    #[tokio::test]
    async fn a_renewed_certificate_that_cannot_be_used_leaves_the_old_one_until_it_can() {
        let server = TestServer::start().await;
        let registration = server.direct_applicant();
        registration.join().await.unwrap();
        let pki = AgentPki::at(&registration.dir);
        let told = watch::Sender::new(());
        let client = lasting_client(&pki.kubelet_kubeconfig, told.subscribe()).await.unwrap();
        let ask = async || client.request_text(Request::get("/version").body(Vec::new()).unwrap()).await;
        ask().await.unwrap();

        fs::write(&pki.client_kubelet.certificate, "torn").unwrap();
        told.send_replace(());
        ask().await.unwrap();
        // One that has ended shows which is used.
        server.backdate(2 * LIFETIME);
        registration.join().await.unwrap();
        assert!(ask().await.unwrap_err().to_string().contains("Unauthorized"));
    }
}
