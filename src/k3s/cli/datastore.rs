//! `k3s datastore serve`: the store without a cluster, in the place of etcd or kine.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use k3s_datastore::{Access, Endpoint, Options, ServerTls, Serving};

use super::{Failure, duration, failure::USAGE, runtime, signals};

/// Where a server keeps its database unless told otherwise.
const DATABASE: &str = "/var/lib/rancher/k3s/server/db/state.db";
/// The shortest interval that etcd takes.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Serve a database by etcd's API until told to stop
    Serve(Serve),
}

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// The database: sqlite:///FILE, made if it is not there; sqlite:// is a server's own
    #[arg(long, value_name = "URL", default_value = "sqlite://")]
    endpoint: String,
    /// unix:///PATH, http://IP:PORT or https://IP:PORT; may be repeated
    #[arg(long, value_name = "URL", required = true)]
    listen: Vec<Endpoint>,
    /// Certificate of https, PEM
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Authorities of the certificates that clients must show, PEM
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    trusted_ca_file: Option<PathBuf>,
    /// Serve beyond loopback without asking clients for certificates
    #[arg(long)]
    insecure_listen: bool,
    /// How often watchers that ask for it hear of progress, such as 5s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    watch_progress_notify_interval: Duration,
    /// http://IP:PORT to show metrics at, under /metrics
    #[arg(long, value_name = "URL", value_parser = metrics_address)]
    metrics_listen: Option<SocketAddr>,
}

pub(super) fn run(verb: Verb) -> Result<ExitCode, Failure> {
    let Verb::Serve(serve) = verb;
    let path = database(&serve.endpoint).map_err(|reason| Failure::new(USAGE, format!("--endpoint: {reason}")))?;
    runtime::log(false);
    runtime::run(async {
        let shutdown = signals::shutdown_on_signal()?;
        let failed = |error: k3s_datastore::Error| Failure::from_error(error.exit_code(), &error);
        let mut options = Options::new(path);
        options.progress_interval = serve.watch_progress_notify_interval;
        let tls = match (&serve.cert_file, &serve.key_file) {
            (Some(certificate), Some(key)) => {
                Some(ServerTls::load(certificate, key, serve.trusted_ca_file.as_deref()).map_err(failed)?)
            }
            _ => None,
        };
        let access = Access { tls, insecure: serve.insecure_listen };
        let serving = Serving { listen: serve.listen, access, metrics: serve.metrics_listen };
        k3s_datastore::serve(options, &serving, shutdown).await.map_err(failed)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The file of `sqlite://` or `sqlite:///FILE`. No error tells the address: it may hold a password.
fn database(url: &str) -> Result<PathBuf, String> {
    match url.split_once("://") {
        Some(("sqlite", "")) => Ok(DATABASE.into()),
        Some(("sqlite", path)) if path.contains('?') => {
            Err("the database's settings after `?` are fixed; leave them out".to_owned())
        }
        Some(("sqlite", path)) if Path::new(path).is_absolute() => Ok(path.into()),
        Some(("sqlite", _)) => Err("write an absolute path, as in sqlite:///srv/state.db".to_owned()),
        Some((name @ ("postgres" | "postgresql" | "mysql" | "nats" | "http" | "https"), _)) => {
            Err(format!("{name} is not served yet; use sqlite:///FILE"))
        }
        _ => Err("this is no datastore's address; write sqlite:///FILE".to_owned()),
    }
}

fn metrics_address(url: &str) -> Result<SocketAddr, String> {
    match url.parse() {
        Ok(Endpoint::Http(address)) => Ok(address),
        _ => Err("write http://IP:PORT".to_owned()),
    }
}

/// An interval that etcd would take.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < LEAST_INTERVAL { Err("the shortest interval is 100ms".to_owned()) } else { Ok(interval) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_an_sqlite_file() {
        assert_eq!(database("sqlite://"), Ok(DATABASE.into()));
        assert_eq!(database("sqlite:///srv/state.db"), Ok("/srv/state.db".into()));
        for (bad, reason) in [
            ("sqlite://state.db", "absolute path"),
            ("sqlite:///srv/state.db?_journal=WAL", "leave them out"),
            ("postgres://k3s:hunter2@db/k3s", "postgres is not served yet"),
            ("mysql://k3s:hunter2@tcp(db)/k3s", "mysql is not served yet"),
            ("/srv/state.db", "no datastore's address"),
        ] {
            let error = database(bad).unwrap_err();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn intervals_are_etcds_or_longer() {
        assert_eq!(interval("100ms"), Ok(LEAST_INTERVAL));
        for bad in ["99ms", "0", "5"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
