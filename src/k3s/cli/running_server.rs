//! The server that a verb asks for something, with the rights of the server that it runs on.

use std::path::PathBuf;

use clap::Args;
use k3s_config::agent::ServerUrl;
use k3s_server::{ServerAccess, ServerRequestError};

use super::{Failure, globals::Globals, location::NodeFlags};

#[derive(Debug, Args)]
pub(super) struct RunningServer {
    #[command(flatten)]
    node: NodeFlags,
    /// The server to ask; the one of this machine if not given
    #[arg(short, long, env = "K3S_URL", value_name = "URL")]
    server: Option<ServerUrl>,
    /// The token in use; the one in the server's own files if not given
    #[arg(short, long, env = "K3S_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// A server of this machine that was found.
pub(super) struct FoundServer {
    dir: PathBuf,
    url: ServerUrl,
    token: Option<String>,
}

impl RunningServer {
    /// Where it is.
    pub(super) fn find(self, globals: Globals) -> Result<FoundServer, Failure> {
        let location = self.node.locate(globals)?;
        let url = self.server.unwrap_or(location.server);
        Ok(FoundServer { dir: location.data_dir.join("server"), url, token: self.token })
    }
}

impl FoundServer {
    /// How to ask it.
    pub(super) fn access(&self) -> Result<ServerAccess, Failure> {
        ServerAccess::new(&self.dir, &self.url, self.token.as_deref()).map_err(refused)
    }

    /// Where this server's token lies.
    pub(super) fn token_file(&self) -> PathBuf {
        self.dir.join("token")
    }
}

/// A request that brought nothing, in a sentence.
pub(super) fn refused(error: ServerRequestError) -> Failure {
    Failure::from_error(error.exit_code(), &error)
}
