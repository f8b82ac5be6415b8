//! Talking to the API as one of this machine's identities.

use std::{path::Path, time::Duration};

use http::Request;
use k3s_controllers::Backoff;
use k3s_supervise::Gate;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{Error, error::chain};

/// Between questions whether the API answers: often while a server starts, rarely while it stays away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A client with the server and the credentials of a kubeconfig of ours.
pub async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    let connect = async || -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    };
    connect().await.map_err(|source| Error::Kubeconfig { path: kubeconfig.to_path_buf(), source })
}

/// Waits until the API is ready for the holder of a kubeconfig; `gate` tells what is missing.
pub(crate) async fn until_ready(kubeconfig: &Path, gate: &Gate) {
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
