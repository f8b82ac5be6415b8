//! What a server is told at its start, for the tests of this room.

use std::{collections::HashMap, ffi::OsString};

use k3s_config::{Environment, server::ServerConfig};

/// The configuration of a machine called `hostname` that has no configuration file.
pub(crate) fn config(hostname: &str, args: impl IntoIterator<Item = impl Into<OsString>>) -> ServerConfig {
    let environment = Environment {
        variables: HashMap::new(),
        hostname: hostname.into(),
        directory: "/".into(),
        config_file: "/nonexistent/config.yaml".into(),
    };
    k3s_config::parse_server(args.into_iter().map(Into::into), &environment).unwrap().0
}
