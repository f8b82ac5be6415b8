//! Where the cluster's state is kept.

use std::{
    fmt,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use crate::{
    embedded_etcd::{self, EmbeddedEtcd, JoinedServer},
    environment::Environment,
    error::Error,
    grammar::is_dns_subdomain,
    network::port,
    secret::Secret,
    values::{Given, Values},
};

/// What kine is called among the components.
pub const KINE: &str = "kine";
/// What etcd is called among them.
pub const ETCD: &str = "etcd";
/// The program that makes a member's data of a snapshot.
pub const ETCDUTL: &str = "etcdutl";
/// Why files for TLS with an external store are refused.
const NOT_EXTERNAL: &str = "it is for an external datastore, which --datastore-endpoint does not name; leave it out";

/// Which store holds the cluster's state. Whoever need not know which one it is asks [which of our children serves it](Self::programs),
/// [whether servers share it](Self::is_shared), [how kube-apiserver reaches it](Self::reached) and
/// [what of it is on this server's disk](Self::on_disk).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datastore {
    /// The embedded one: `<data-dir>/server/db/state.db`.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
    /// A database elsewhere, which kine serves by etcd's API. Other servers of the cluster may use it too, each through its own kine.
    Sql(Sql),
    /// Servers of etcd's v3 API: etcd, kine or `k3s datastore serve`. Other servers of the cluster may use them too.
    Etcd(Etcd),
    /// etcd with a member on each server, which runs it.
    EmbeddedEtcd(EmbeddedEtcd),
    /// The etcd of other servers' members: this one runs none (`--disable-etcd`).
    OtherMembers(JoinedServer),
}

/// How kube-apiserver reaches a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached<'a> {
    /// On this server's own socket.
    Socket,
    /// At its servers.
    Servers(&'a Etcd),
    /// At etcd's port on loopback: a member, or the way to those of other servers.
    Loopback,
}

/// What a server's own disk has of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisk<'a> {
    /// The database.
    Database(&'a Path),
    /// A member of etcd.
    Member(&'a EmbeddedEtcd),
}

/// A database that kine makes an etcd of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql {
    /// Its address as kine and k3s take it; it may hold a password.
    pub endpoint: Secret,
    /// What its certificate is checked by, PEM (`--datastore-cafile`).
    pub ca_file: Option<PathBuf>,
    /// What kine shows it (`--datastore-certfile`, `--datastore-keyfile`).
    pub client: Option<ClientCertificate>,
    /// How many connections kine keeps to it.
    pub pool: Pool,
}

/// The databases that kine knows, beside SQLite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    /// `postgres://USER:PASSWORD@HOST:5432/DATABASE`.
    Postgres,
    /// `mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE`, MariaDB too.
    Mysql,
    /// `nats://HOST:4222`, with JetStream.
    Nats,
}

impl Engine {
    /// Whether its address is a URL; MySQL's is a form of its own, which takes passwords as they are.
    fn is_url(self) -> bool {
        match self {
            Self::Postgres | Self::Nats => true,
            Self::Mysql => false,
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Postgres => "this is no database's address; write postgres://USER:PASSWORD@HOST:5432/DATABASE",
            Self::Mysql => "this is no database's address; write mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE",
            Self::Nats => "this is no server's address; write nats://HOST:4222",
        }
    }
}

/// Limits of kine's connections to its database, in kine's own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Idle connections that are kept; 0 is the database driver's own default, a negative number keeps none.
    pub max_idle: i32,
    /// Open connections at most; 0 or less for no limit.
    pub max_open: i32,
    /// How long one is used, as Go writes a duration; `0s` for ever.
    pub max_lifetime: String,
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

    /// The child of ours that serves it, and what that needs beside; none where this process or somebody else serves it.
    pub fn programs(&self) -> &'static [&'static str] {
        match self {
            Self::Sqlite { .. } | Self::Etcd(_) | Self::OtherMembers(_) => &[],
            Self::Sql(_) => &[KINE],
            Self::EmbeddedEtcd(_) => &[ETCD, ETCDUTL],
        }
    }

    /// How kube-apiserver reaches it.
    pub fn reached(&self) -> Reached<'_> {
        match self {
            Self::Sqlite { .. } | Self::Sql(_) => Reached::Socket,
            Self::Etcd(etcd) => Reached::Servers(etcd),
            Self::EmbeddedEtcd(_) | Self::OtherMembers(_) => Reached::Loopback,
        }
    }

    /// What of it is on this server's disk.
    pub fn on_disk(&self) -> Option<OnDisk<'_>> {
        match self {
            Self::Sqlite { path } => Some(OnDisk::Database(path)),
            Self::EmbeddedEtcd(etcd) => Some(OnDisk::Member(etcd)),
            Self::Sql(_) | Self::Etcd(_) | Self::OtherMembers(_) => None,
        }
    }

    /// Whether servers beside this one may use it, so that they have to agree on who does what.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Sqlite { .. } => false,
            Self::Sql(_) | Self::Etcd(_) | Self::EmbeddedEtcd(_) | Self::OtherMembers(_) => true,
        }
    }

    /// kine runs in the server's directory, so a relative path starts there. No error tells the endpoint: it may hold a password.
    pub(crate) fn from_values(values: &Values, data_dir: &Path, environment: &Environment) -> Result<Self, Error> {
        let files = TlsFiles::from_values(values, environment)?;
        if let Some(joined) = embedded_etcd::of_others(values, data_dir, environment)? {
            files.refuse(NOT_EXTERNAL)?;
            refuse_snapshots(values, "the servers that run etcd take and restore its snapshots; leave it out")?;
            embedded_etcd::refuse_flags(values)?;
            Pool::refuse(values)?;
            return Ok(Self::OtherMembers(joined));
        }
        let etcd = EmbeddedEtcd::from_values(values, data_dir, environment)?;
        let datastore = match (etcd, values.given("datastore-endpoint")) {
            (Some(etcd), None) => Self::EmbeddedEtcd(etcd),
            (Some(etcd), Some(given)) => return Err(etcd.refuse_endpoint(values, given)),
            (None, None) => Self::embedded(data_dir),
            (None, Some(given)) => {
                match given.text.split_once("://") {
                    Some(("sqlite", "")) => Self::embedded(data_dir),
                    Some(("sqlite", path)) if path.contains('?') => {
                        return Err(given
                            .invalid("the database's settings after `?` are fixed in this version; leave them out"));
                    }
                    Some(("sqlite", path)) => Self::Sqlite { path: data_dir.join("server").join(path) },
                    Some(("http" | "https", _)) => Self::Etcd(files.etcd(endpoints(given)?)?),
                    Some(("postgres" | "postgresql", _)) => Self::Sql(files.sql(Engine::Postgres, given, values)?),
                    Some(("mysql", _)) => Self::Sql(files.sql(Engine::Mysql, given, values)?),
                    Some(("nats", _)) => Self::Sql(files.sql(Engine::Nats, given, values)?),
                    _ => {
                        let instead = "leave it out, or write sqlite:///FILE, https://HOST:2379, postgres://…, mysql://… or nats://…";
                        return Err(given.invalid(format!("this is no datastore's address; {instead}")));
                    }
                }
            }
        };
        match &datastore {
            Self::Sqlite { .. } | Self::EmbeddedEtcd(_) | Self::OtherMembers(_) => files.refuse(NOT_EXTERNAL)?,
            Self::Sql(_) | Self::Etcd(_) => refuse_snapshots(
                values,
                "snapshots of an external datastore are taken and restored where it runs; leave it out",
            )?,
        }
        if !matches!(datastore, Self::EmbeddedEtcd(_)) {
            embedded_etcd::refuse_idle(values, values.given("datastore-endpoint"))?;
            embedded_etcd::refuse_flags(values)?;
        }
        if !matches!(datastore, Self::Sql(_)) {
            Pool::refuse(values)?;
        }
        Ok(datastore)
    }
}

fn refuse_snapshots(values: &Values, problem: &str) -> Result<(), Error> {
    let flags = ["snapshot-schedule-cron", "cluster-reset", "etcd-s3"];
    let given = flags.into_iter().find_map(|name| values.given(name)).filter(|given| given.text != "false");
    given.map_or(Ok(()), |given| Err(given.invalid(problem)))
}

impl Pool {
    const FLAGS: [&'static str; 3] =
        ["datastore-max-idle-connections", "datastore-max-open-connections", "datastore-connection-max-lifetime"];

    fn refuse(values: &Values) -> Result<(), Error> {
        let given = Self::FLAGS.into_iter().find_map(|name| values.given(name));
        given.map_or(Ok(()), |given| {
            Err(given.invalid(
                "it is for kine's connections to a database, which --datastore-endpoint does not name; leave it out",
            ))
        })
    }

    /// kine's defaults where nothing is given.
    fn from_values(values: &Values) -> Result<Self, Error> {
        let [idle, open, lifetime] = Self::FLAGS.map(|name| values.given(name));
        let count = |given: Option<&Given>, default| match given {
            Some(given) => given.text.parse().map_err(|_| given.invalid("this is no number of connections; write 20")),
            None => Ok(default),
        };
        let max_lifetime = match lifetime {
            Some(given) if is_go_duration(&given.text) => given.text.clone(),
            Some(given) => return Err(given.invalid("this is no duration; write 30m or 1h")),
            None => "0s".to_owned(),
        };
        Ok(Self { max_idle: count(idle, 20)?, max_open: count(open, 0)?, max_lifetime })
    }
}

/// Whole numbers with Go's units, such as `1h30m`.
fn is_go_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let after = &rest[digits..];
        let unit = ["ms", "us", "ns", "h", "m", "s"].into_iter().find(|unit| after.starts_with(unit));
        match unit {
            Some(unit) if (1..=9).contains(&digits) => rest = &after[unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty()
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
        Ok(Etcd { endpoints, ca_file: self.ca_file(), client: self.client() })
    }

    fn sql(&self, engine: Engine, endpoint: &Given, values: &Values) -> Result<Sql, Error> {
        let nowhere = endpoint.text.split_once("://").is_none_or(|(_, rest)| rest.is_empty());
        if nowhere || endpoint.text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(endpoint.invalid(engine.example()));
        }
        // kine would repeat the whole address, with the password, in its log.
        if engine.is_url() && !is_url(&endpoint.text) {
            return Err(endpoint.invalid(format!(
                "{}, and each letter of user and password that is not of A-Z a-z 0-9 - . _ ~ as % and two hexadecimal digits",
                engine.example()
            )));
        }
        Ok(Sql {
            endpoint: Secret::new(&endpoint.text),
            ca_file: self.ca_file(),
            client: self.client(),
            pool: Pool::from_values(values)?,
        })
    }

    fn ca_file(&self) -> Option<PathBuf> {
        self.ca.as_ref().map(|(_, path)| path.clone())
    }

    fn client(&self) -> Option<ClientCertificate> {
        let (certificate, key) = self.certificate.as_ref().zip(self.key.as_ref())?;
        Some(ClientCertificate { certificate: certificate.1.clone(), key: key.1.clone() })
    }
}

/// Whether Go's `net/url` takes it, as it is meant: escapes are whole, the user's part has no letters that end it, a port has digits.
fn is_url(text: &str) -> bool {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let is_escaped = rest.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    });
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let is_user = user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte));
    let is_host = hosts.rsplit_once(':').is_none_or(|(host, port)| {
        // Within an address of IPv6 there is no port.
        (port.ends_with(']') && host.starts_with('[')) || port.bytes().all(|byte| byte.is_ascii_digit())
    });
    // A password with such a letter ends the authority.
    let is_whole = !after.split('?').next().unwrap_or_default().contains('@');
    is_escaped && is_user && is_host && is_whole
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
    fn a_database_that_kine_serves() {
        let args = [
            "--datastore-endpoint=postgres://k3s:hunter2@db:5432/k3s?sslmode=verify-full",
            "--datastore-cafile=/etc/ca.crt",
            "--datastore-max-open-connections=8",
            "--datastore-connection-max-lifetime=1h30m",
        ];
        let datastore = datastore(&args).unwrap();
        assert!(datastore.is_shared());
        let Datastore::Sql(sql) = &datastore else { panic!("this is a database") };
        assert_eq!(sql.endpoint.expose(), "postgres://k3s:hunter2@db:5432/k3s?sslmode=verify-full");
        assert_eq!(sql.ca_file.as_deref(), Some(Path::new("/etc/ca.crt")));
        assert_eq!(sql.pool, Pool { max_idle: 20, max_open: 8, max_lifetime: "1h30m".to_owned() });
        assert!(!format!("{datastore:?}").contains("hunter2"));
    }

    #[test]
    fn addresses_as_users_write_them() {
        for endpoint in [
            "postgres://k3s:p%40ss%25@db:5432/k3s?sslmode=disable",
            "postgresql://k3s@[fd00::1]:5432/k3s",
            "postgres://[fd00::1]/k3s",
            "postgres://k3s@db1:5432,db2:5432/k3s?target_session_attrs=read-write",
            "mysql://k3s:p%ss^@tcp(db:3306)/k3s",
            "nats://user:pass@db:4222?bucket=k3s",
            "nats://db1:4222,db2:4222",
            "nats://?dontListen=true",
        ] {
            let args = format!("--datastore-endpoint={endpoint}");
            assert!(matches!(datastore(&[&args]), Ok(Datastore::Sql(_))), "{endpoint}");
        }
    }

    #[test]
    fn what_will_not_do_is_refused_without_telling_a_password() {
        let etcd = "--datastore-endpoint=https://db:2379";
        let sql = "--datastore-endpoint=mysql://k3s:hunter2@tcp(db:3306)/k3s";
        let table: [(&[&str], &str); 20] = [
            (&["--datastore-endpoint=postgres://k3s:hunter2%x@db:5432/k3s"], "as % and two hexadecimal digits"),
            (&["--datastore-endpoint=postgres://k3s:/hunter2@db:5432/k3s"], "as % and two hexadecimal digits"),
            (&["--datastore-endpoint=postgres://k3s:hunter2^@db:5432/k3s"], "as % and two hexadecimal digits"),
            (&["--datastore-endpoint=nats://k3s:hunter2%@db:4222"], "as % and two hexadecimal digits"),
            (&["--datastore-endpoint=mysql://"], "write mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE"),
            (&["--datastore-endpoint=nats://a b"], "write nats://HOST:4222"),
            (&[sql, "--datastore-connection-max-lifetime=soon"], "write 30m or 1h"),
            (&[sql, "--snapshot-schedule-cron=@daily"], "are taken and restored where it runs"),
            (&["--datastore-max-idle-connections=1"], "it is for kine's connections to a database"),
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
