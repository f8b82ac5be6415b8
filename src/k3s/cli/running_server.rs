//! The server that a verb asks for something, with the rights of the server that it runs on.

use std::path::PathBuf;

use clap::Args;
use k3s_config::agent::ServerUrl;
use k3s_server::{ServerAccess, ServerRequestError};

use super::Failure;

#[derive(Debug, Args)]
pub(super) struct RunningServer {
    /// Where the server keeps its state
    #[arg(short, long, env = "K3S_DATA_DIR", value_name = "DIR", default_value = "/var/lib/rancher/k3s")]
    data_dir: PathBuf,
    /// The server to ask
    #[arg(short, long, env = "K3S_URL", value_name = "URL", default_value = "https://127.0.0.1:6443")]
    server: ServerUrl,
    /// The token in use; the one in the server's own files if not given
    #[arg(short, long, env = "K3S_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl RunningServer {
    /// How to ask it.
    pub(super) fn access(&self) -> Result<ServerAccess, Failure> {
        ServerAccess::new(&self.data_dir.join("server"), &self.server, self.token.as_deref()).map_err(refused)
    }

    /// Where this server's token lies.
    pub(super) fn token_file(&self) -> PathBuf {
        self.data_dir.join("server/token")
    }
}

/// A request that brought nothing, in a sentence.
pub(super) fn refused(error: ServerRequestError) -> Failure {
    Failure::from_error(error.exit_code(), &error)
}
