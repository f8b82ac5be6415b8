//! Talking to the API as one of this machine's identities.

use std::path::Path;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::Error;

/// A client with the server and the credentials of a kubeconfig of ours.
pub async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    let connect = async || -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    };
    connect().await.map_err(|source| Error::Kubeconfig { path: kubeconfig.to_path_buf(), source })
}
