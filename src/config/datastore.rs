//! Where the cluster's state is kept.

use std::{
    fmt,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use crate::{
    environment::Environment,
    error::Error,
    flags::EXTERNAL_SQL,
    grammar::is_dns_subdomain,
    network::port,
    values::{Given, Values},
};

/// Which store holds the cluster's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datastore {
    /// The embedded one: `<data-dir>/server/db/state.db`.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
    /// Servers of etcd's v3 API: etcd, kine or `k3s datastore serve`. Other servers of the cluster may use them too.
    Etcd(Etcd),
}

/// How an external store is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Its servers, at least one; all of them `https` or none.
    pub endpoints: Vec<EtcdEndpoint>,
    /// What their certificates are checked by, PEM (`--datastore-cafile`); the operating system's authorities if `None`.
    pub ca_file: Option<PathBuf>,
    /// What a server shows them (`--datastore-certfile`, `--datastore-keyfile`).
    pub client: Option<ClientCertificate>,
}

/// One of its servers. `Display` is its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdEndpoint {
    /// Whether it is asked over TLS.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A certificate and its key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Datastore {
    /// The default below a data directory, where k3s keeps it too.
    pub fn embedded(data_dir: &Path) -> Self {
        Self::Sqlite { path: data_dir.join("server/db/state.db") }
    }

    /// Whether servers beside this one may use it, so that they have to agree on who does what.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Etcd(_))
    }

    /// kine runs in the server's directory, so a relative path starts there. No error tells the endpoint: it may hold a password.
    pub(crate) fn from_values(values: &Values, data_dir: &Path, environment: &Environment) -> Result<Self, Error> {
        let files = TlsFiles::from_values(values, environment)?;
        let datastore = match values.given("datastore-endpoint") {
            None => Self::embedded(data_dir),
            Some(given) => match given.text.split_once("://") {
                Some(("sqlite", "")) => Self::embedded(data_dir),
                Some(("sqlite", path)) if path.contains('?') => {
                    return Err(
                        given.invalid("the database's settings after `?` are fixed in this version; leave them out")
                    );
                }
                Some(("sqlite", path)) => Self::Sqlite { path: data_dir.join("server").join(path) },
                Some(("http" | "https", _)) => Self::Etcd(files.etcd(endpoints(given)?)?),
                Some(("mysql" | "postgres" | "postgresql" | "nats", _)) => return Err(given.not_served(EXTERNAL_SQL)),
                _ => {
                    let instead = "leave it out, or write sqlite:///FILE or https://HOST:2379";
                    return Err(given.invalid(format!("this is no datastore's address; {instead}")));
                }
            },
        };
        if let Self::Etcd(_) = datastore {
            let local = ["snapshot-schedule-cron", "cluster-reset"].into_iter().find_map(|name| values.given(name));
            if let Some(given) = local.filter(|given| given.text != "false") {
                return Err(given
                    .invalid("snapshots of an external datastore are taken and restored where it runs; leave it out"));
            }
        } else {
            files.refuse("it is for an external datastore, which --datastore-endpoint does not name; leave it out")?;
        }
        Ok(datastore)
    }
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, host, port } = self;
        let scheme = if *tls { "https" } else { "http" };
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// The flags for files of TLS, and the files.
struct TlsFiles<'a> {
    ca: Option<(&'a Given, PathBuf)>,
    certificate: Option<(&'a Given, PathBuf)>,
    key: Option<(&'a Given, PathBuf)>,
}

impl<'a> TlsFiles<'a> {
    fn from_values(values: &'a Values, environment: &Environment) -> Result<Self, Error> {
        let file = |name| {
            let given = values.given(name);
            given.map(|given| Ok::<_, Error>((given, given.path(environment)?))).transpose()
        };
        let files = Self {
            ca: file("datastore-cafile")?,
            certificate: file("datastore-certfile")?,
            key: file("datastore-keyfile")?,
        };
        match (&files.certificate, &files.key) {
            (Some((given, _)), None) => Err(given.invalid("a certificate needs its key; give --datastore-keyfile too")),
            (None, Some((given, _))) => {
                Err(given.invalid("a key needs its certificate; give --datastore-certfile too"))
            }
            _ => Ok(files),
        }
    }

    fn refuse(&self, problem: &str) -> Result<(), Error> {
        let given = [&self.ca, &self.certificate].into_iter().flatten().next();
        given.map_or(Ok(()), |(given, _)| Err(given.invalid(problem)))
    }

    fn etcd(&self, endpoints: Vec<EtcdEndpoint>) -> Result<Etcd, Error> {
        if endpoints.iter().all(|endpoint| !endpoint.tls) {
            self.refuse("http:// has no use for it; write the datastore's address as https://, or leave it out")?;
        }
        let path = |file: &Option<(&Given, PathBuf)>| file.as_ref().map(|(_, path)| path.clone());
        let client = path(&self.certificate).zip(path(&self.key));
        let client = client.map(|(certificate, key)| ClientCertificate { certificate, key });
        Ok(Etcd { endpoints, ca_file: path(&self.ca), client })
    }
}

/// `https://HOST:PORT`, several with commas between them.
fn endpoints(given: &Given) -> Result<Vec<EtcdEndpoint>, Error> {
    let endpoints: Option<Vec<_>> = given.text.split(',').map(|url| endpoint(url.trim())).collect();
    let endpoints = endpoints.ok_or_else(|| {
        given.invalid("this is no list of an etcd's servers; write them as https://HOST:2379, with commas between them")
    })?;
    if endpoints.iter().any(|endpoint| endpoint.tls != endpoints[0].tls) {
        return Err(given.invalid("some servers of the datastore are https and some are http; use one of them for all"));
    }
    Ok(endpoints)
}

fn endpoint(url: &str) -> Option<EtcdEndpoint> {
    let (scheme, rest) = url.split_once("://")?;
    let tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let (host, number) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once(':')?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().ok()?.to_string(),
        None => Some(host.to_lowercase()).filter(|host| is_dns_subdomain(host))?,
    };
    Some(EtcdEndpoint { tls, host, port: port(number).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    fn datastore(args: &[&str]) -> Result<Datastore, String> {
        Host::new().server(args).map(|(config, _)| config.datastore).map_err(|error| error.to_string())
    }

    #[test]
    fn a_database_elsewhere() {
        let at = |path: &str| Ok(Datastore::Sqlite { path: path.into() });
        assert_eq!(datastore(&["--datastore-endpoint=sqlite://"]), at("/var/lib/rancher/k3s/server/db/state.db"));
        let relative = datastore(&["--datastore-endpoint=sqlite://./db/other.db"]);
        assert_eq!(relative, at("/var/lib/rancher/k3s/server/db/other.db"));
        assert_eq!(datastore(&["--datastore-endpoint=sqlite:///srv/state.db"]), at("/srv/state.db"));
    }

    #[test]
    fn an_etcd() {
        let args = [
            "--datastore-endpoint=https://10.0.0.1:2379,https://[fd00::1]:2379/,https://DB.example.com:443",
            "--datastore-cafile=/etc/ca.crt",
            "--datastore-certfile=/etc/client.crt",
            "--datastore-keyfile=/etc/client.key",
        ];
        let Ok(Datastore::Etcd(etcd)) = datastore(&args) else { panic!("this is an etcd") };
        let urls: Vec<_> = etcd.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["https://10.0.0.1:2379", "https://[fd00::1]:2379", "https://db.example.com:443"]);
        assert_eq!(etcd.ca_file.as_deref(), Some(Path::new("/etc/ca.crt")));
        let client = ClientCertificate { certificate: "/etc/client.crt".into(), key: "/etc/client.key".into() };
        assert_eq!(etcd.client, Some(client));
        assert!(datastore(&["--datastore-endpoint=http://localhost:2379"]).unwrap().is_shared());
    }

    #[test]
    fn what_will_not_do_is_refused_without_telling_a_password() {
        let etcd = "--datastore-endpoint=https://db:2379";
        let table: [(&[&str], &str); 11] = [
            (&["--datastore-endpoint=https://db"], "--datastore-endpoint: this is no list of an etcd's servers"),
            (&["--datastore-endpoint=https://k3s:hunter2@db:2379"], "this is no list of an etcd's servers"),
            (&["--datastore-endpoint=https://db:2379/path"], "this is no list of an etcd's servers"),
            (&["--datastore-endpoint=https://db:2379,db:2379"], "this is no list of an etcd's servers"),
            (&["--datastore-endpoint=https://db:2379,http://db:2379"], "use one of them for all"),
            (&["--datastore-endpoint=http://db:2379", "--datastore-cafile=ca"], "http:// has no use for it"),
            (&[etcd, "--datastore-certfile=a"], "give --datastore-keyfile too"),
            (&[etcd, "--datastore-keyfile=a"], "give --datastore-certfile too"),
            (&["--datastore-cafile=ca"], "--datastore-cafile: it is for an external datastore"),
            (&[etcd, "--snapshot-schedule-cron=@daily"], "are taken and restored where it runs"),
            (&[etcd, "--cluster-reset", "--cluster-reset-restore-path=x"], "are taken and restored where it runs"),
        ];
        for (args, expected) in table {
            let error = datastore(args).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{args:?}: {error}");
        }
    }
}
