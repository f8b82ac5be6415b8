//! Where the node of this machine is, for commands beside it: by the sources that its own start reads.

use std::{ffi::OsString, path::PathBuf};

use crate::{
    agent::ServerUrl,
    environment::Environment,
    error::Error,
    flags::Role,
    merge,
    network::{address, port, reached_at},
};

/// What commands have to know of a server or agent on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Root of all state (`--data-dir`).
    pub data_dir: PathBuf,
    /// The administrator's kubeconfig (`--write-kubeconfig`).
    pub kubeconfig: PathBuf,
    /// Where a server answers on this machine (`--bind-address`, `--https-listen-port`).
    pub server: ServerUrl,
}

impl Location {
    /// Where a server writes the administrator's kubeconfig unless it is told otherwise.
    pub const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
}

/// The node that `k3s server` or `k3s agent` with these `args` would be; nothing else of its configuration is looked at, so that a part that
/// is refused at a start hides nothing.
///
/// # Errors
/// A configuration file that cannot be read, and a wrong value of what a [`Location`] is made of.
pub fn locate(args: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Location, Error> {
    let args: Vec<_> = args.into_iter().collect();
    let values = merge::look_up(Role::Server, &args, environment)?;
    let bound = values.text("bind-address").parse(address)?;
    Ok(Location {
        data_dir: values.text("data-dir").path(environment)?,
        kubeconfig: values.text("write-kubeconfig").path(environment)?,
        server: ServerUrl {
            host: reached_at(bound.into()).to_string(),
            port: values.text("https-listen-port").parse(port)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    fn located(host: &Host, args: &[&str]) -> [String; 3] {
        let Location { data_dir, kubeconfig, server } =
            locate(args.iter().map(OsString::from), &host.environment).expect("a valid configuration");
        [host.anonymous(data_dir.display()), host.anonymous(kubeconfig.display()), server.to_string()]
    }

    #[test]
    fn a_node_is_found_by_the_sources_of_its_start() {
        let usual = ["/var/lib/rancher/k3s", Location::KUBECONFIG, "https://127.0.0.1:6443"];
        assert_eq!(located(&Host::new(), &[]), usual);
        let host = Host::new().variable("K3S_DATA_DIR", "/from/variable");
        assert_eq!(located(&host, &[])[0], "/from/variable");
        let host = host.config(
            "data-dir: /from/file\nwrite-kubeconfig: mine.yaml\nbind-address: 192.0.2.7\nhttps-listen-port: 7443\n",
        );
        assert_eq!(located(&host, &[]), ["/from/file", "DIR/mine.yaml", "https://192.0.2.7:7443"]);
        assert_eq!(located(&host, &["--data-dir=/from/flag"])[0], "/from/flag");
        let host = host.file("other.yaml", "data-dir: /from/other\n");
        assert_eq!(located(&host, &["--config=other.yaml"])[0], "/from/other");
    }

    #[test]
    fn an_agents_file_and_what_a_start_refuses_hide_nothing() {
        let host =
            Host::new().config("data-dir: /srv/k3s\nserver: https://s:6443\ncluster-init: true\nnode-ip: none\n");
        assert_eq!(located(&host, &[])[0], "/srv/k3s");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let host = Host::new().config("- data-dir\n");
        let error = locate([], &host.environment).expect_err("it is no mapping");
        assert_eq!(
            host.anonymous(error),
            "DIR/config.yaml line 1: the file holds no mapping; write each flag as `name: value`"
        );
    }
}
