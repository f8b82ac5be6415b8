//! What `k3s agent` was asked to be.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

pub use crate::node::{NodeConfig, Snapshotter, Taint, TaintEffect};

use crate::{
    environment::Environment,
    error::{Error, Origin, Place},
    grammar::is_dns_subdomain,
    network::{address, port},
    resources::ProfileChoice,
    secret::Secret,
    token,
    values::Values,
};

/// An agent's whole configuration.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Root of all state (`--data-dir`); an agent's lies in `agent/` below it.
    pub data_dir: PathBuf,
    /// The server to join (`--server`).
    pub server: ServerUrl,
    /// The whole token to join with (`--token`, `--token-file`); `None` where certificates of an earlier join are kept.
    pub token: Option<Secret>,
    /// Where the node's own listeners bind (`--bind-address`).
    pub bind_address: IpAddr,
    /// The load balancer's port on loopback (`--lb-server-port`).
    pub balancer_port: u16,
    /// The node itself.
    pub node: NodeConfig,
    /// How much memory programs are set up for (`--resource-profile`).
    pub resource_profile: ProfileChoice,
    /// Our own log tells details (`--debug`).
    pub debug: bool,
    /// klog verbosity for children (`-v`), 0 is their default.
    pub verbosity: u8,
}

/// Where a server answers: always over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// A name or an address.
    pub host: String,
    /// 443 unless given.
    pub port: u16,
}

impl AgentConfig {
    pub(crate) fn from_values(values: &Values, environment: &Environment) -> Result<Self, Error> {
        let data_dir = values.text("data-dir").path(environment)?;
        let missing = |flag, problem: &str| Error::Invalid {
            place: Place { flag, origin: Origin::CommandLine },
            problem: problem.to_owned(),
        };
        let server = values.given("server").ok_or_else(|| {
            missing("server", "an agent needs a server to join; give its address as https://HOST:6443")
        })?;
        let token = token::find(values, "token", "token-file", environment)?;
        if token.is_none() && !has_joined(&data_dir) {
            return Err(missing("token", "an agent needs a token to join; give the one in server/token of the server"));
        }
        Ok(Self {
            data_dir,
            server: server.parse(str::parse)?,
            token: token.as_ref().map(token::joining).transpose()?,
            bind_address: values.text("bind-address").parse(address)?.into(),
            balancer_port: values.text("lb-server-port").parse(port)?,
            node: NodeConfig::from_values(values, environment)?,
            resource_profile: values.text("resource-profile").parse(str::parse)?,
            debug: values.is_on("debug"),
            verbosity: values.verbosity()?,
        })
    }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("`{text}` is not a server's address; write it as https://HOST:6443");
        let authority = text.strip_prefix("https://").ok_or_else(problem)?.trim_end_matches('/');
        let (host, port_text) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = port_text.map_or(Ok(443), port)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| problem())?.to_string(),
            None if is_dns_subdomain(&host.to_lowercase()) => host.to_lowercase(),
            None => return Err(problem()),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "https://{open}{}{close}:{}", self.host, self.port)
    }
}

/// An agent that has joined before holds a certificate, which stands in for the token.
fn has_joined(data_dir: &Path) -> bool {
    ["crt", "key"].iter().all(|end| data_dir.join(format!("agent/client-kubelet.{end}")).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_host::Host;

    #[test]
    fn an_agent_needs_a_server_and_a_token() {
        let host = Host::new().variable("K3S_URL", "https://Server:6443/").variable("K3S_TOKEN", "K10::node:pw");
        let (config, _) = host.agent(&["--node-label=a=b"]).expect("a valid configuration");
        assert_eq!(config.server.to_string(), "https://server:6443");
        assert_eq!(config.token.as_ref().map(Secret::expose), Some("K10::node:pw"));
        assert_eq!((config.balancer_port, config.node.name.as_str()), (6444, "pi"));
    }

    #[test]
    fn an_agent_that_has_joined_needs_no_token() {
        let host = Host::new().file("agent/client-kubelet.crt", "").file("agent/client-kubelet.key", "");
        let args = ["--server=https://[2001:db8::1]:6443", "--data-dir=."];
        let (config, _) = host.agent(&args).expect("a valid configuration");
        assert!(config.token.is_none());
        assert_eq!(config.server.to_string(), "https://[2001:db8::1]:6443");
    }

    #[test]
    fn a_server_url_without_a_port_means_443() {
        assert_eq!("https://k3s.example.com".parse(), Ok(ServerUrl { host: "k3s.example.com".to_owned(), port: 443 }));
    }

    #[test]
    fn a_server_and_an_agent_may_share_a_file() {
        let host = Host::new().config("cluster-cidr: 10.50.0.0/16\ntoken: t\nserver: https://s:6443\n");
        let (_, warnings) = host.agent(&[]).expect("keys of servers are skipped");
        assert_eq!(warnings, []);
    }
}
