//! A bucket for snapshots, as k3s' flags and its Secret describe it.

use std::{fmt, net::Ipv6Addr, path::PathBuf, time::Duration};

use data_encoding::BASE64;

use crate::{
    environment::Environment,
    error::Error,
    flags::Flag,
    secret::Secret,
    values::{Given, Values, duration},
};

/// What turns it on.
const SWITCH: &str = "etcd-s3";
/// What names the Secret.
const CONFIG_SECRET: &str = "etcd-s3-config-secret";
/// Settings of a bucket, under the names that flags and keys of the Secret have.
const SETTINGS: [&str; 13] = [
    "etcd-s3-endpoint",
    "etcd-s3-endpoint-ca",
    "etcd-s3-skip-ssl-verify",
    "etcd-s3-access-key",
    "etcd-s3-secret-key",
    "etcd-s3-session-token",
    "etcd-s3-bucket",
    "etcd-s3-bucket-lookup-type",
    "etcd-s3-region",
    "etcd-s3-folder",
    "etcd-s3-proxy",
    "etcd-s3-insecure",
    "etcd-s3-timeout",
];
/// What PEM begins with.
const PEM: &str = "-----BEGIN";
/// How many snapshots stay: beside the settings as beside the Secret.
const RETENTION: &str = "etcd-s3-retention";

/// That snapshots go to a bucket, too (`--etcd-s3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// Which one.
    pub source: S3Source,
    /// How many scheduled snapshots of a node stay in it (`--etcd-s3-retention`); zero keeps all.
    pub retention: usize,
}

/// Where the settings of the bucket are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Source {
    /// In this server's configuration.
    Settings(Box<S3Settings>),
    /// In the Secret of this name in `kube-system` (`--etcd-s3-config-secret`).
    Secret(String),
}

/// A bucket and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// Who serves it (`--etcd-s3-endpoint`).
    pub endpoint: S3Endpoint,
    /// How (`--etcd-s3-insecure`, `--etcd-s3-skip-ssl-verify`, `--etcd-s3-endpoint-ca`).
    pub security: S3Security,
    /// Who asks (`--etcd-s3-access-key`, `--etcd-s3-secret-key`, `--etcd-s3-session-token`).
    pub credentials: S3Credentials,
    /// Its name (`--etcd-s3-bucket`).
    pub bucket: String,
    /// Whether that is part of the host's name (`--etcd-s3-bucket-lookup-type`).
    pub lookup: BucketLookup,
    /// Where it is (`--etcd-s3-region`): part of what is signed.
    pub region: String,
    /// What the names of snapshots in it begin with (`--etcd-s3-folder`), without a slash at either end; empty if they are at its top.
    pub folder: String,
    /// What is on the way (`--etcd-s3-proxy`).
    pub proxy: S3Proxy,
    /// How long one operation may take (`--etcd-s3-timeout`).
    pub timeout: Duration,
}

/// A host that serves S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Endpoint {
    /// Its name or address; one of IPv6 without brackets.
    pub host: String,
    /// Its port; that of HTTP or HTTPS if `None`.
    pub port: Option<u16>,
}

/// What protects the way to a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Security {
    /// Nothing.
    Plain,
    /// TLS, with whoever answers.
    Unverified,
    /// TLS, with a certificate of these authorities; of those that the system trusts where there are none.
    Verified(Vec<CaSource>),
}

/// An authority.
#[derive(Clone, PartialEq, Eq)]
pub enum CaSource {
    /// In a file.
    File(PathBuf),
    /// As PEM.
    Pem(Vec<u8>),
}

/// The proxy on the way to a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Proxy {
    /// That of the environment (`HTTPS_PROXY` and its kin), if there is one.
    Environment,
    /// None, whatever the environment says.
    None,
    /// This one, whose URL may hold a password.
    Http(Secret),
}

/// By what S3 knows who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// Its name. No secret to S3, but it is kept like one.
    pub access_key: Secret,
    /// What signs.
    pub secret_key: Secret,
    /// What temporary keys come with.
    pub session_token: Option<Secret>,
}

/// How a bucket is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketLookup {
    /// As Amazon wants it there, and in the path elsewhere.
    Auto,
    /// In the host's name.
    Dns,
    /// In the path.
    Path,
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongSetting {
    /// Its name; `None` if one is missing.
    pub name: Option<&'static str>,
    /// The problem and its remedy.
    pub problem: String,
}

impl S3Config {
    pub(crate) fn from_values(values: &Values, environment: &Environment) -> Result<Option<Self>, Error> {
        let Some(switch) = values.given(SWITCH).filter(|given| given.text == "true") else {
            let names = SETTINGS.iter().chain([&CONFIG_SECRET, &RETENTION]);
            return match names.filter_map(|name| values.given(name)).find(|given| asks_for_something(given)) {
                Some(given) => Err(given.invalid("it is for snapshots in S3; give --etcd-s3 too, or leave it out")),
                None => Ok(None),
            };
        };
        let retention = values.text(RETENTION).parse(|text| {
            text.parse().map_err(|_| format!("`{text}` is not a count; write a number such as 5, or 0 to keep all"))
        })?;
        if let Some(secret) = values.given(CONFIG_SECRET) {
            if SETTINGS.iter().filter_map(|name| values.given(name)).any(asks_for_something) {
                return Err(secret.invalid(
                    "the Secret has all settings of the bucket, and others are given as well; leave out one of the two",
                ));
            }
            return Ok(Some(Self { source: S3Source::Secret(secret.text.clone()), retention }));
        }
        let get = |name| values.given(name).map(|given| given.text.clone());
        let path = |text: &str| environment.path(text);
        let settings = S3Settings::read(get, path, Vec::new());
        let settings = settings.map_err(|WrongSetting { name, problem }| {
            name.and_then(|name| values.given(name)).unwrap_or(switch).invalid(problem)
        })?;
        Ok(Some(Self { source: S3Source::Settings(Box::new(settings)), retention }))
    }
}

impl S3Settings {
    /// The settings in a Secret, of which `get` has the values, beside authorities that a ConfigMap has.
    ///
    /// # Errors
    /// One is missing or cannot be used.
    pub fn of_secret(
        get: impl Fn(&'static str) -> Option<String>,
        authorities: Vec<Vec<u8>>,
    ) -> Result<Self, WrongSetting> {
        Self::read(get, |text| Ok(PathBuf::from(text)), authorities)
    }

    fn read(
        get: impl Fn(&'static str) -> Option<String>,
        path: impl Fn(&str) -> Result<PathBuf, String>,
        authorities: Vec<Vec<u8>>,
    ) -> Result<Self, WrongSetting> {
        // Files that Secrets are made of end in a line end.
        let get = |name: &'static str| get(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let text =
            |name: &'static str| get(name).or_else(|| Flag::default_of(name).map(str::to_owned)).unwrap_or_default();
        let wrong = |name| move |problem| WrongSetting { name: Some(name), problem };
        let needed = |name: &'static str, variable: &str| {
            get(name).ok_or_else(|| WrongSetting {
                name: None,
                problem: format!("snapshots in S3 need {name}{variable}; give it too"),
            })
        };
        let is_on = |name: &'static str| match get(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(wrong(name)("the value is neither true nor false; write one of them".to_owned())),
        };
        let security = if is_on("etcd-s3-insecure")? {
            S3Security::Plain
        } else if is_on("etcd-s3-skip-ssl-verify")? {
            S3Security::Unverified
        } else {
            let given = text("etcd-s3-endpoint-ca");
            let mut sources = authorities_of(&given, &path).map_err(wrong("etcd-s3-endpoint-ca"))?;
            sources.extend(authorities.into_iter().map(CaSource::Pem));
            S3Security::Verified(sources)
        };
        Ok(Self {
            endpoint: endpoint(&text("etcd-s3-endpoint")).map_err(wrong("etcd-s3-endpoint"))?,
            security,
            credentials: S3Credentials {
                access_key: Secret::new(needed("etcd-s3-access-key", " (or AWS_ACCESS_KEY_ID)")?),
                secret_key: Secret::new(needed("etcd-s3-secret-key", " (or AWS_SECRET_ACCESS_KEY)")?),
                session_token: get("etcd-s3-session-token").map(Secret::new),
            },
            bucket: bucket(needed("etcd-s3-bucket", "")?).map_err(wrong("etcd-s3-bucket"))?,
            lookup: lookup(&text("etcd-s3-bucket-lookup-type")).map_err(wrong("etcd-s3-bucket-lookup-type"))?,
            region: text("etcd-s3-region"),
            folder: text("etcd-s3-folder").trim_matches('/').to_owned(),
            proxy: proxy(get("etcd-s3-proxy")).map_err(wrong("etcd-s3-proxy"))?,
            timeout: duration(&text("etcd-s3-timeout")).map_err(wrong("etcd-s3-timeout"))?,
        })
    }
}

impl fmt::Display for S3Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (true, None) => write!(f, "[{}]", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (false, None) => f.write_str(&self.host),
        }
    }
}

impl fmt::Debug for CaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Pem(pem) => f.debug_tuple("Pem").field(&pem.len()).finish(),
        }
    }
}

/// Variables of AWS alone do not, nor does what would be so anyway.
fn asks_for_something(given: &Given) -> bool {
    let by_default = Flag::default_of(given.place.flag).unwrap_or("false");
    !given.is_of_environment() && given.text != by_default
}

fn endpoint(text: &str) -> Result<S3Endpoint, String> {
    let wrong = || format!("`{text}` is no host; write one such as s3.example.com or 10.0.0.9:9000, without https://");
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_name = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if host.is_empty() || !(is_name(host) || host.parse::<Ipv6Addr>().is_ok()) {
        return Err(wrong());
    }
    Ok(S3Endpoint { host: host.to_owned(), port: port.map(str::parse).transpose().map_err(|_| wrong())? })
}

/// PEM itself, as Secrets have it; or files and base64 of PEM, with spaces between, as k3s' flag has them.
fn authorities_of(text: &str, path: impl Fn(&str) -> Result<PathBuf, String>) -> Result<Vec<CaSource>, String> {
    if text.starts_with(PEM) {
        return Ok(vec![CaSource::Pem(text.as_bytes().to_vec())]);
    }
    let source = |text: &str| match BASE64.decode(text.as_bytes()) {
        Ok(pem) if pem.starts_with(PEM.as_bytes()) => Ok(CaSource::Pem(pem)),
        _ => path(text).map(CaSource::File),
    };
    text.split_whitespace().map(source).collect()
}

/// Whatever S3 servers take; nothing that means something in an address.
fn bucket(text: String) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.len() <= 255 {
        return Ok(text);
    }
    Err(format!("`{text}` is no name of a bucket; use letters, digits, dots and dashes"))
}

fn lookup(text: &str) -> Result<BucketLookup, String> {
    match text {
        "auto" => Ok(BucketLookup::Auto),
        "dns" => Ok(BucketLookup::Dns),
        "path" => Ok(BucketLookup::Path),
        _ => Err(format!("`{text}` is no way to address a bucket; use auto, dns or path")),
    }
}

/// The value may hold a password and is not repeated.
fn proxy(text: Option<String>) -> Result<S3Proxy, String> {
    let is_http =
        |text: &str| text.strip_prefix("http://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    match text {
        None => Ok(S3Proxy::Environment),
        Some(text) if text == "none" => Ok(S3Proxy::None),
        Some(text) if is_http(&text) => Ok(S3Proxy::Http(Secret::new(text))),
        Some(_) => Err("this is no proxy's address; write http://HOST:PORT, or none for no proxy".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    const KEYS: [&str; 3] = ["--etcd-s3", "--etcd-s3-access-key=id", "--etcd-s3-secret-key=hunter2"];

    fn settings(host: &Host, args: &[&str]) -> S3Settings {
        let config = host.server(args).unwrap_or_else(|error| panic!("{args:?}: {error}")).0;
        match config.snapshots.s3 {
            Some(S3Config { source: S3Source::Settings(settings), .. }) => *settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bucket_is_described_by_k3s_flags() {
        let found = settings(&Host::new(), &[&KEYS[..], &["--etcd-s3-bucket=backups"]].concat());
        assert_eq!(found.endpoint.to_string(), "s3.amazonaws.com");
        assert_eq!(
            (found.region.as_str(), found.folder.as_str(), found.proxy),
            ("us-east-1", "", S3Proxy::Environment)
        );
        assert_eq!((found.timeout, found.lookup), (Duration::from_secs(300), BucketLookup::Auto));
        assert_eq!(found.security, S3Security::Verified(Vec::new()));
        assert!(!format!("{:?}", found.credentials).contains("hunter2"));

        let more = [
            "--etcd-s3-bucket=b",
            "--etcd-s3-endpoint=[fd00::9]:9000",
            "--etcd-s3-folder=/edge/7/",
            "--etcd-s3-bucket-lookup-type=path",
            "--etcd-s3-timeout=90s",
            "--etcd-s3-endpoint-ca=/etc/ca.pem",
            "--etcd-s3-proxy=none",
        ];
        let found = settings(&Host::new(), &[&KEYS[..], &more].concat());
        assert_eq!((found.endpoint.to_string().as_str(), found.endpoint.port), ("[fd00::9]:9000", Some(9000)));
        assert_eq!((found.folder.as_str(), found.timeout), ("edge/7", Duration::from_secs(90)));
        assert_eq!(found.proxy, S3Proxy::None);
        assert_eq!(found.security, S3Security::Verified(vec![CaSource::File("/etc/ca.pem".into())]));
    }

    #[test]
    fn variables_of_aws_complete_the_flags_and_ask_for_nothing() {
        let host = Host::new().variable("AWS_ACCESS_KEY_ID", "id").variable("AWS_SECRET_ACCESS_KEY", "key");
        assert_eq!(host.server(&[]).expect("a valid configuration").0.snapshots.s3, None);
        let found = settings(&host, &["--etcd-s3", "--etcd-s3-bucket=b"]);
        assert_eq!(found.credentials.access_key.expose(), "id");
        let args = ["--etcd-s3", "--etcd-s3-config-secret=bucket", "--etcd-s3-retention=3"];
        let config = host.server(&args).expect("a valid configuration").0;
        assert_eq!(config.snapshots.s3, Some(S3Config { source: S3Source::Secret("bucket".to_owned()), retention: 3 }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (args, expected) in [
            (&["--etcd-s3"][..], "--etcd-s3: snapshots in S3 need etcd-s3-access-key"),
            (&KEYS, "--etcd-s3: snapshots in S3 need etcd-s3-bucket"),
            (&["--etcd-s3-bucket=b"], "--etcd-s3-bucket: it is for snapshots in S3; give --etcd-s3 too"),
            (
                &["--etcd-s3", "--etcd-s3-config-secret=s", "--etcd-s3-folder=f"],
                "--etcd-s3-config-secret: the Secret has all",
            ),
        ] {
            let error = Host::new().server(args).expect_err("it is refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        for wrong in [
            "--etcd-s3-endpoint=https://s3.example.com",
            "--etcd-s3-endpoint=host:port",
            "--etcd-s3-bucket=a/b",
            "--etcd-s3-bucket-lookup-type=guess",
            "--etcd-s3-timeout=soon",
            "--etcd-s3-retention=-1",
            "--etcd-s3-proxy=socks5://hunter2@proxy",
        ] {
            let bucket = if wrong.contains("bucket=") { &[][..] } else { &["--etcd-s3-bucket=b"] };
            let error = Host::new().server(&[&KEYS[..], bucket, &[wrong]].concat()).expect_err(wrong).to_string();
            assert!(error.starts_with(wrong.split('=').next().unwrap_or_default()), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_authority_is_a_file_or_base64_as_in_k3s() {
        let pem = "-----BEGIN CERTIFICATE-----\n";
        let given = format!("/etc/ca.pem {}", BASE64.encode(pem.as_bytes()));
        let found = authorities_of(&given, |text| Ok(PathBuf::from(text)));
        assert_eq!(found, Ok(vec![CaSource::File("/etc/ca.pem".into()), CaSource::Pem(pem.into())]));
    }

    #[test]
    fn a_secret_has_the_same_settings() {
        let pem = "-----BEGIN CERTIFICATE-----\n";
        let get = |name: &'static str| match name {
            "etcd-s3-bucket" => Some("b".to_owned()),
            "etcd-s3-access-key" | "etcd-s3-secret-key" => Some("key\n".to_owned()),
            "etcd-s3-endpoint-ca" => Some(pem.to_owned()),
            _ => None,
        };
        let found = S3Settings::of_secret(get, vec![b"more".to_vec()]).expect("valid settings");
        let expected = [pem.trim().as_bytes().to_vec(), b"more".to_vec()].map(CaSource::Pem).to_vec();
        assert_eq!(found.security, S3Security::Verified(expected));
        assert_eq!(found.credentials.secret_key.expose(), "key", "without the line end of a file");
        let missing = S3Settings::of_secret(|_| None, Vec::new()).expect_err("there are no keys");
        assert!(missing.problem.contains("etcd-s3-access-key"), "{missing:?}");
    }
}
