//! The file itself: k3s' format, checked whole before any of it counts.

use std::{collections::BTreeMap, path::PathBuf};

use data_encoding::BASE64;
use k3s_config::secret::Secret;
use serde::Deserialize;
use serde_saphyr::{Error as YamlError, Spanned, options};

use super::{
    HostConfig, Registries, Registry, Tls,
    endpoint::{Endpoint, is_host},
};

/// What is wrong, and in which line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) line: Option<u64>,
    pub(super) reason: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Document {
    mirrors: Option<BTreeMap<String, Option<Spanned<MirrorEntry>>>>,
    configs: Option<BTreeMap<String, Option<Spanned<ConfigEntry>>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct MirrorEntry {
    endpoint: Option<Vec<Spanned<String>>>,
    rewrite: Option<BTreeMap<String, Spanned<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ConfigEntry {
    auth: Option<Spanned<AuthEntry>>,
    tls: Option<Spanned<TlsEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthEntry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<Spanned<String>>,
    identity_token: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsEntry {
    ca_file: Option<Spanned<PathBuf>>,
    cert_file: Option<Spanned<PathBuf>>,
    key_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    insecure_skip_verify: bool,
}

/// What `bytes` say.
///
/// # Errors
/// The first thing that cannot be followed.
pub(super) fn parse(bytes: &[u8]) -> Result<Registries, Wrong> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Wrong { line: None, reason: "it is not UTF-8 text; write it as UTF-8".to_owned() })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let says = |line: &str| !matches!(line.trim().chars().next(), None | Some('#')) && line.trim() != "---";
    if !text.lines().any(says) {
        return Ok(Registries::default());
    }
    let document: Option<Document> =
        serde_saphyr::from_str_with_options(text, options! { with_snippet: false }).map_err(|error| of_yaml(&error))?;
    let Document { mirrors, configs } = document.unwrap_or_default();
    let mut registries = Registries::default();
    for (name, entry) in mirrors.unwrap_or_default() {
        let line = entry.as_ref().and_then(line_of);
        let registry = registry(&name, "mirrors").map_err(|reason| Wrong { line, reason })?;
        registries.mirrors.insert(registry, endpoints(entry.map(|entry| entry.value).unwrap_or_default())?);
    }
    for (name, entry) in configs.unwrap_or_default() {
        let line = entry.as_ref().and_then(line_of);
        let registry = registry(&name, "configs").map_err(|reason| Wrong { line, reason })?;
        let config = config(&registry, entry.map(|entry| entry.value).unwrap_or_default())?;
        registries.configs.insert(registry, config);
    }
    Ok(registries)
}

fn registry(name: &str, under: &str) -> Result<Registry, String> {
    match name {
        "*" => Ok(Registry::Others),
        name if is_host(name) => Ok(Registry::Named(name.to_ascii_lowercase())),
        name => Err(format!("`{name}` under {under} is no registry; write HOST, HOST:PORT or \"*\", without https://")),
    }
}

/// A mirror's endpoints, each once.
fn endpoints(entry: MirrorEntry) -> Result<Vec<Endpoint>, Wrong> {
    let folder = folder(&entry.rewrite.unwrap_or_default())?;
    let mut endpoints = Vec::new();
    for given in entry.endpoint.unwrap_or_default() {
        let endpoint = Endpoint::parse(&given.value).map_err(|reason| Wrong { line: line_of(&given), reason })?;
        let endpoint = endpoint.below(&folder);
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

/// The folder in which a mirror has all images, as the rewrite of every name says. Of rewrites only this one can be followed: containerd
/// asks an endpoint for an image by the image's own name, below a path of the endpoint.
fn folder(rewrites: &BTreeMap<String, Spanned<String>>) -> Result<String, Wrong> {
    let Some((pattern, replacement)) = rewrites.iter().next() else { return Ok(String::new()) };
    let all = ["(.*)", "(.+)", "^(.*)$", "^(.+)$", "^(.*)", "^(.+)", "(^.*$)", "(^.+$)"].contains(&&**pattern);
    let name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/'));
    let folder = ["$1", "${1}"].iter().find_map(|whole| replacement.value.strip_suffix(whole));
    let folder = folder.map(|folder| folder.trim_start_matches('/')).filter(|folder| name(folder));
    match folder {
        Some("") if all && rewrites.len() == 1 => Ok(String::new()),
        Some(folder) if all && rewrites.len() == 1 && folder.ends_with('/') => {
            Ok(folder.trim_end_matches('/').to_owned())
        }
        _ => Err(Wrong {
            line: line_of(replacement),
            reason: format!(
                "the rewrite `{pattern}` is not served: containerd takes only one of all names into a folder; write it as \"(.*)\": \"FOLDER/$1\", or give the images these names in the mirror"
            ),
        }),
    }
}

fn config(registry: &Registry, entry: ConfigEntry) -> Result<HostConfig, Wrong> {
    let authorization = match entry.auth {
        None => None,
        Some(auth) if *registry == Registry::Others => {
            let reason = "credentials for \"*\" would be shown to every registry; name the registry they are for";
            return Err(Wrong { line: line_of(&auth), reason: reason.to_owned() });
        }
        Some(auth) => authorization(auth)?,
    };
    Ok(HostConfig { authorization, tls: entry.tls.map(tls).transpose()?.unwrap_or_default() })
}

/// Of several, containerd takes a name and its password first.
fn authorization(given: Spanned<AuthEntry>) -> Result<Option<Secret>, Wrong> {
    let line = line_of(&given);
    let basic = |credentials: &[u8]| Some(Secret::new(format!("Basic {}", BASE64.encode(credentials))));
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let AuthEntry { username, password, auth, identity_token } = given.value;
    match (filled(username), filled(password)) {
        (Some(username), Some(password)) => return Ok(basic(format!("{username}:{password}").as_bytes())),
        (None, None) => {}
        (Some(_), None) => return Err(Wrong { line, reason: "the username has no password; write both".to_owned() }),
        (None, Some(_)) => return Err(Wrong { line, reason: "the password has no username; write both".to_owned() }),
    }
    if let Some(token) = identity_token.filter(|token| !token.value.is_empty()) {
        let reason =
            "identity_token is not served, as containerd takes it only at its start; write username and password";
        return Err(Wrong { line: line_of(&token), reason: reason.to_owned() });
    }
    let Some(auth) = auth.filter(|auth| !auth.value.is_empty()) else { return Ok(None) };
    let decoded = BASE64.decode(auth.value.trim().as_bytes()).ok().filter(|decoded| decoded.contains(&b':'));
    match decoded {
        Some(decoded) => Ok(basic(&decoded)),
        None => {
            let reason = "auth is not the base64 form of NAME:PASSWORD; write username and password instead";
            Err(Wrong { line: line_of(&auth), reason: reason.to_owned() })
        }
    }
}

fn tls(given: Spanned<TlsEntry>) -> Result<Tls, Wrong> {
    let line = line_of(&given);
    let TlsEntry { ca_file, cert_file, key_file, insecure_skip_verify } = given.value;
    let (ca, cert, key) = (path(ca_file)?, path(cert_file)?, path(key_file)?);
    if cert.is_none() && key.is_some() {
        return Err(Wrong { line, reason: "key_file has no certificate; write cert_file too".to_owned() });
    }
    Ok(Tls { ca, client: cert.map(|cert| (cert, key)), skip_verify: insecure_skip_verify })
}

fn path(given: Option<Spanned<PathBuf>>) -> Result<Option<PathBuf>, Wrong> {
    let Some(given) = given.filter(|given| !given.value.as_os_str().is_empty()) else { return Ok(None) };
    let is_usable = given.value.is_absolute() && !given.value.to_string_lossy().contains(char::is_control);
    let reason = || format!("`{}` is not a whole path; begin it with /", given.value.display());
    if is_usable { Ok(Some(given.value)) } else { Err(Wrong { line: line_of(&given), reason: reason() }) }
}

fn line_of<T>(spanned: &Spanned<T>) -> Option<u64> {
    Some(spanned.referenced.line()).filter(|line| *line > 0)
}

/// In one line, without the place, which is told by us, and without what the file says, which may be a secret.
fn of_yaml(error: &YamlError) -> Wrong {
    let text = error.to_string();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or(first);
    let first = first.strip_prefix("error: ").unwrap_or(first).trim_end_matches([':', ',']);
    let told = match (first.find('"'), first.rfind('"')) {
        (Some(begin), Some(end)) => format!("{}{}", &first[..begin], first[end + 1..].trim_start()),
        _ => first.to_owned(),
    };
    let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
    Wrong { line, reason: format!("{told}; correct it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> (Option<u64>, String) {
        let wrong = parse(text.as_bytes()).unwrap_err();
        (wrong.line, wrong.reason)
    }

    #[test]
    fn nothing_said_is_nothing_wanted() {
        for text in ["", "\n# later\n", "---\n", "\u{feff}", "mirrors:\nconfigs:\n", "{}"] {
            assert_eq!(parse(text.as_bytes()), Ok(Registries::default()), "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_told_with_its_line() {
        for (text, line, part) in [
            ("mirrors: [\n", None, "; correct it"),
            ("mirror:\n  a: {}\n", Some(1), "unknown field `mirror`"),
            ("mirrors:\n  a:\n    endpoints: [x]\n", Some(3), "unknown field `endpoints`"),
            ("mirrors:\n  ../../etc:\n    endpoint: []\n", Some(3), "`../../etc` under mirrors is no registry"),
            (
                "mirrors:\n  a:\n    endpoint:\n      - https://b\n      - ftp://c\n",
                Some(5),
                "`ftp://c` is no endpoint",
            ),
            (
                "mirrors:\n  a:\n    endpoint: [https://b]\n    rewrite:\n      \"^rancher/(.*)\": \"x/$1\"\n",
                Some(5),
                "the rewrite `^rancher/(.*)` is not served",
            ),
            ("configs:\n  \"*\":\n    auth: {username: a, password: b}\n", Some(3), "shown to every registry"),
            ("configs:\n  a:\n    auth:\n      username: a\n", Some(4), "has no password"),
            ("configs:\n  a:\n    auth:\n      identity_token: b\n", Some(4), "identity_token is not served"),
            ("configs:\n  a:\n    auth:\n      auth: hunter2\n", Some(4), "base64 form of NAME:PASSWORD"),
            ("configs:\n  a:\n    tls:\n      ca_file: ca.pem\n", Some(4), "`ca.pem` is not a whole path"),
            ("configs:\n  a:\n    tls:\n      key_file: /k\n", Some(4), "key_file has no certificate"),
        ] {
            let (at, reason) = wrong(text);
            assert!(reason.contains(part), "{reason}");
            if line.is_some() {
                assert_eq!(at, line, "{text}");
            }
        }
    }

    #[test]
    fn errors_show_no_secret() {
        for text in [
            "configs:\n  a:\n    auth: c2VjcmV0OnNlY3JldA==\n",
            "configs:\n  a:\n    auth: {auth: secret}\n",
            "configs:\n  a:\n    auth: {username: [secret]}\n",
            "configs:\n  a:\n    auth: {identity_token: secret}\n",
            "configs:\n  a: secret\n",
        ] {
            let (_, reason) = wrong(text);
            assert!(!reason.contains("secret") && !reason.contains("c2Vj"), "{reason}");
        }
    }
}
