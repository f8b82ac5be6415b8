//! What a server begins with, for the tests of this room.

use std::{collections::HashMap, ffi::OsString};

use k3s_config::{Environment, server::ServerConfig};
use k3s_supervise::{Options, Supervisor, cgroup::CgroupPlace, log::Target};

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

/// What would run its programs. It leaves the machine's cgroups alone.
pub(crate) fn supervisor() -> Supervisor {
    let options = Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere };
    Supervisor::new(options).unwrap()
}
