//! Values that the tests of this room begin with.

use std::{collections::HashMap, ffi::OsString, path::PathBuf};

use k3s_config::{Environment, resources::Profile, server::ServerConfig};
use k3s_network::ProxyMode;

use crate::{CgroupDriver, Components, Node, Paths};

pub(crate) fn config(args: &[&str]) -> ServerConfig {
    let environment = Environment {
        variables: HashMap::new(),
        hostname: "edge".into(),
        directory: PathBuf::from("/"),
        config_file: PathBuf::from("/nonexistent/config.yaml"),
    };
    k3s_config::parse_server(args.iter().map(OsString::from), &environment).unwrap().0
}

pub(crate) fn paths() -> Paths {
    Paths::new("/data", "/run/k3s")
}

/// Every program under its bare name.
pub(crate) fn found() -> Components {
    Components::default()
}

pub(crate) fn node(args: &[&str]) -> Node {
    let config = config(args);
    Node {
        config: config.node.unwrap(),
        network: config.network,
        ips: vec!["10.0.0.2".parse().unwrap()],
        resolv_conf: "/etc/resolv.conf".into(),
        proxy_mode: ProxyMode::Nftables,
        cgroup_driver: CgroupDriver::Cgroupfs,
        may_lower_oom_score: false,
        cgroup_v2: false,
        shim_cgroup: None,
        cloud_provider_external: true,
        profile: Profile::Standard,
        verbosity: 0,
    }
}
