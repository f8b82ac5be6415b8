//! `k3s certificate`: the cluster's certificate authorities.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use k3s_server::PinnedTokens;

use super::{
    Failure,
    running_server::{RunningServer, refused},
    runtime,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Replace the cluster's certificate authorities by your own, or by new ones
    ///
    /// To be run on a server. The authorities and the service-account keys are read as PATH/tls/server-ca.crt, PATH/tls/server-ca.key,
    /// PATH/tls/service.key and so on, each with the chain that leads to its root; what is not there stays as it is. The server takes them
    /// if the old authorities vouch for them, and keeps them in the datastore; they count once all servers, and then all agents, have
    /// started again.
    RotateCa(RotateCa),
}

#[derive(Debug, Args)]
pub(super) struct RotateCa {
    #[command(flatten)]
    server: RunningServer,
    /// The folder that holds tls/server-ca.crt and its like
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Replace them also by ones that the old ones do not vouch for: every node has to join again with the new token, and every pod to
    /// start again
    #[arg(long)]
    force: bool,
}

pub(super) fn run(verb: Verb) -> Result<ExitCode, Failure> {
    let Verb::RotateCa(rotate) = verb;
    runtime::run(rotate.run())
}

impl RotateCa {
    async fn run(self) -> Result<ExitCode, Failure> {
        let tokens = self.server.access()?.replace_authorities(&self.path, self.force).await.map_err(refused)?;
        println!("The datastore holds the new certificate authorities.");
        println!("Start every server again, one after the other, and then every agent: they count from then on.");
        if tokens == PinnedTokens::Change {
            let file = self.server.token_file();
            println!(
                "Whole tokens (K10…) pin another root from then on: where one is configured, put what {} holds then.",
                file.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
