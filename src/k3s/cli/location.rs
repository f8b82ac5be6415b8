//! The node of this machine that a verb works on: found as its own start finds everything, in one place for all verbs.

use std::ffi::OsString;

use clap::Args;
use k3s_config::{Location, locate};

use super::{
    Failure,
    environment::{environment, refused},
    globals::Globals,
};

/// Where the node is, where its configuration file and variables do not tell.
#[derive(Debug, Args)]
pub(super) struct NodeFlags {
    /// Configuration file of the server or agent
    #[arg(short, long, value_name = "FILE")]
    config: Option<OsString>,
    /// Where the server or agent keeps its state
    #[arg(short, long, value_name = "DIR")]
    data_dir: Option<OsString>,
}

impl NodeFlags {
    /// These flags as a server's own.
    pub(super) fn into_args(self, globals: Globals) -> Vec<OsString> {
        let config = self.config.map(|file| ["--config".into(), file]);
        let data_dir = self.data_dir.map(|dir| ["--data-dir".into(), dir]);
        globals.before(config.into_iter().chain(data_dir).flatten().collect())
    }

    pub(super) fn locate(self, globals: Globals) -> Result<Location, Failure> {
        locate(self.into_args(globals), &environment()?).map_err(|error| refused(&error))
    }
}
