//! The API as this server's administrator sees it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k3s_config::Location;
use k3s_identity::CaHash;
use kube::{
    Client,
    config::{Cluster, Kubeconfig},
};

use super::{
    Failure,
    failure::{CONFIGURATION, UNAVAILABLE},
    globals::Globals,
    location::NodeFlags,
    missing_api,
};

/// Whose credentials a verb works with.
#[derive(Debug, clap::Args)]
pub(super) struct Administrator {
    /// The administrator's kubeconfig; the one that this server writes if not given
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

impl Administrator {
    /// The credentials in the kubeconfig that is named, or else in this server's own.
    pub(super) fn credentials(self, globals: Globals) -> Result<Credentials, Failure> {
        // A variable that is empty names none, as for kubectl.
        let (kubeconfig, own_server) = match self.kubeconfig.filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => (file, None),
            None => {
                let Location { kubeconfig, data_dir, .. } = self.node.locate(globals)?;
                (kubeconfig, Some(data_dir))
            }
        };
        Ok(Credentials { kubeconfig, own_server })
    }
}

/// What the API is asked with.
#[derive(Debug)]
pub(super) struct Credentials {
    kubeconfig: PathBuf,
    /// The directory of the server that has written it, where it is this machine's.
    own_server: Option<PathBuf>,
}

impl Credentials {
    /// A client of the API that the kubeconfig names.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        if let Err(error) = fs::File::open(&self.kubeconfig) {
            return Err(unreadable(&self.kubeconfig, &error));
        }
        if let Some(data_dir) = &self.own_server
            && let Some(why) = missing_api::reason(data_dir).await
        {
            return Err(Failure::new(UNAVAILABLE, format!("the cluster has no API yet: {why}")));
        }
        k3s_agent::client(&self.kubeconfig).await.map_err(|error| Failure::from_error(CONFIGURATION, &error))
    }

    /// What pins the cluster's authority in tokens.
    pub(super) fn ca_hash(&self) -> Result<CaHash, Failure> {
        let unusable = |why: String| Failure::new(CONFIGURATION, format!("{}: {why}", self.kubeconfig.display()));
        // Paths in it are made absolute.
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).map_err(|error| unusable(error.to_string()))?;
        let cluster = current_cluster(&kubeconfig).ok_or_else(|| unusable("it names no cluster".to_owned()))?;
        let bundle = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
            (Some(data), _) => BASE64_STANDARD.decode(data).map_err(|error| unusable(error.to_string()))?,
            (None, Some(path)) => fs::read(path).map_err(|error| unreadable(Path::new(path), &error))?,
            (None, None) => {
                return Err(unusable("it names no certificate authority that a token could pin".to_owned()));
            }
        };
        CaHash::of(&bundle).map_err(|error| unusable(error.to_string()))
    }

    /// A request that failed, in a sentence: `doing` is what was tried.
    pub(super) fn failed(&self, doing: &str, error: &kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) => Failure::new(UNAVAILABLE, format!("cannot {doing}: {}", status.message)),
            error => {
                let failure = Failure::from_error(UNAVAILABLE, error);
                let from = self.kubeconfig.display();
                let remedy = "is the server running? `k3s status` tells";
                Failure::new(
                    UNAVAILABLE,
                    format!("cannot {doing}, as the API of {from} does not answer ({failure}): {remedy}"),
                )
            }
        }
    }
}

/// A kubeconfig that is not there, and what to do.
fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let remedy = "run as root on a server, or set KUBECONFIG to a kubeconfig of yours";
    Failure::new(UNAVAILABLE, format!("{} cannot be read ({error}): {remedy}", path.display()))
}

fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let current = kubeconfig.current_context.as_deref()?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == current)?.context.as_ref()?;
    kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()
}
