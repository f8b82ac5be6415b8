//! Where a registry is reached: the URLs of mirrors, normalised as k3s does.

use http::Uri;

const DOCKER: &str = "docker.io";
/// Where docker.io is served.
const DOCKER_HOST: &str = "registry-1.docker.io";
/// Of the registry API.
const API: &str = "/v2";

/// A place that serves the registry API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `scheme://host[:port]`
    origin: String,
    /// Where the API begins.
    path: String,
    /// By which name `configs` knows it.
    pub(super) registry: String,
}

impl Endpoint {
    /// The endpoint that `text` names: a URL, or a host to which one is made up.
    ///
    /// # Errors
    /// A sentence for a text that is neither.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no endpoint; write it as https://HOST, https://HOST:PORT or https://HOST/PATH");
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        if !is_host(authority.as_str()) || uri.query().is_some() {
            return Err(wrong());
        }
        let host = authority.as_str().to_ascii_lowercase();
        let scheme = match scheme.as_deref() {
            Some("http") => "http",
            Some("https") => "https",
            Some(_) => return Err(wrong()),
            None if is_local(authority.host()) && !matches!(authority.port_u16(), None | Some(443)) => "http",
            None => "https",
        };
        let (registry, served) = match host.as_str() {
            DOCKER | DOCKER_HOST => (DOCKER, DOCKER_HOST),
            host => (host, host),
        };
        let path = match uri.path().trim_end_matches('/') {
            "" => API,
            path => path,
        };
        Ok(Self { origin: format!("{scheme}://{served}"), path: path.to_owned(), registry: registry.to_owned() })
    }

    /// The same, for images whose names begin with `folder` there.
    pub(super) fn below(self, folder: &str) -> Self {
        if folder.is_empty() { self } else { Self { path: format!("{}/{folder}", self.path), ..self } }
    }

    pub(super) fn url(&self) -> String {
        format!("{}{}", self.origin, self.path)
    }

    /// Whether the API is elsewhere than where a registry has it.
    pub(super) fn overrides_path(&self) -> bool {
        self.path != API
    }
}

/// The other name by which `configs` may know a registry.
pub(super) fn alias(registry: &str) -> Option<&'static str> {
    match registry {
        DOCKER => Some(DOCKER_HOST),
        DOCKER_HOST => Some(DOCKER),
        _ => None,
    }
}

/// Whether `text` is a host with or without a port, which as the name of a folder leads nowhere else.
pub(super) fn is_host(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') && text.chars().all(known)
}

fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_normalised_as_in_k3s() {
        for (text, url, overrides, registry) in [
            ("https://mirror.example", "https://mirror.example/v2", false, "mirror.example"),
            ("https://mirror.example/", "https://mirror.example/v2", false, "mirror.example"),
            ("https://mirror.example/v2", "https://mirror.example/v2", false, "mirror.example"),
            ("http://Mirror.example:5000/v2/cache", "http://mirror.example:5000/v2/cache", true, "mirror.example:5000"),
            ("mirror.example:5000", "https://mirror.example:5000/v2", false, "mirror.example:5000"),
            ("localhost:5000", "http://localhost:5000/v2", false, "localhost:5000"),
            ("[::1]:5000", "http://[::1]:5000/v2", false, "[::1]:5000"),
            ("127.0.0.1:443", "https://127.0.0.1:443/v2", false, "127.0.0.1:443"),
            ("localhost", "https://localhost/v2", false, "localhost"),
            ("docker.io", "https://registry-1.docker.io/v2", false, "docker.io"),
            ("https://registry-1.docker.io", "https://registry-1.docker.io/v2", false, "docker.io"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((&*endpoint.url(), endpoint.overrides_path(), &*endpoint.registry), (url, overrides, registry));
        }
        for text in ["", "ftp://mirror.example", "https://", "https://user:pass@mirror.example", "a b", "https://h?q=1"]
        {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_names_of_folders() {
        for host in ["docker.io", "registry.example:5000", "[::1]:5000", "10.0.0.1"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "..", ".", "../../etc", "a/b", "https://a", "a b", "_default"] {
            assert!(!is_host(host), "{host}");
        }
    }
}
