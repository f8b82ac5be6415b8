//! kine: makes an etcd of a database elsewhere, on a socket that only this server's kube-apiserver and `k3s` itself ask.

use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use k3s_config::datastore::{ClientCertificate, KINE, Sql};
use k3s_supervise::program::{Probe, Program, Stop};

use crate::{
    Paths, capabilities,
    launch::{Flags, Launch},
    libexec::Components,
};

/// Where the datastore listens, whoever serves it: relative to the working directory, since a socket's path may have 107 bytes and a data
/// directory's more.
pub(crate) const SOCKET: &str = "unix://kine.sock";

/// Where kine takes the database's address from, so that its password is on no command line.
const ENDPOINT: &str = "KINE_ENDPOINT";

/// Where its log quotes a write that failed, values and all (`pkg/server/kv.go`).
const FAILED_WRITES: [&str; 2] = ["error in txn ", "error in put "];

/// kine for the database `sql`, with k3s' own schema.
pub fn kine(sql: &Sql, paths: &Paths, found: &Components) -> Launch {
    let mut flags = Flags::default();
    flags
        .set("listen-address", SOCKET)
        // Its priorities reach the journal.
        .set("log-format", "json")
        // Its own metrics would be served to everybody who reaches the machine.
        .set("metrics-bind-address", 0)
        .set("datastore-max-idle-connections", sql.pool.max_idle)
        .set("datastore-max-open-connections", sql.pool.max_open)
        .set("datastore-connection-max-lifetime", &sql.pool.max_lifetime);
    if let Some(path) = &sql.ca_file {
        flags.path("ca-file", path.clone());
    }
    if let Some(ClientCertificate { certificate, key }) = &sql.client {
        flags.path("cert-file", certificate.clone()).path("key-file", key.clone());
    }
    Launch {
        files: Vec::new(),
        program: Program {
            args: flags.merged(&k3s_config::args::ComponentArgs::default()),
            env: BTreeMap::from([(ENDPOINT.into(), OsString::from(sql.endpoint.expose()))]),
            working_dir: Some(paths.server()),
            // It opens its socket once the database has answered, and waits by itself for one that goes away: it has no liveness probe.
            readiness: Probe::UnixSocket { path: paths.datastore_socket() },
            // While it looks for its database it hears no signal (`OpenDB` of its generic driver), and has nothing to finish.
            stop: Stop { timeout: Duration::from_secs(5), ..Stop::default() },
            cpu_weight: 200,
            oom_score_adj: Some(-500),
            capabilities: capabilities::of_control_plane(),
            quotes_after: &FAILED_WRITES,
            ..Program::new(KINE, found.path(KINE))
        },
    }
}

#[cfg(test)]
mod tests {
    use k3s_config::datastore::Datastore;

    use super::*;
    use crate::testing::{config, found, paths};

    #[test]
    fn the_password_is_on_no_command_line() {
        let config = config(&[
            "--datastore-endpoint=postgres://k3s:hunter2@db:5432/k3s",
            "--datastore-cafile=/etc/ca.crt",
            "--datastore-max-open-connections=8",
        ]);
        let Datastore::Sql(sql) = &config.datastore else { panic!("this is a database") };
        let program = kine(sql, &paths(), &found()).program;
        assert_eq!(
            program.args,
            [
                "--ca-file=/etc/ca.crt",
                "--datastore-connection-max-lifetime=0s",
                "--datastore-max-idle-connections=20",
                "--datastore-max-open-connections=8",
                "--listen-address=unix://kine.sock",
                "--log-format=json",
                "--metrics-bind-address=0",
            ]
        );
        assert_eq!(program.env[&OsString::from("KINE_ENDPOINT")], "postgres://k3s:hunter2@db:5432/k3s");
        assert_eq!(program.working_dir, Some("/data/server".into()));
    }
}
