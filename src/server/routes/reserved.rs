//! Names and addresses that no node can have: clients know the API by them, and nodes' certificates are signed by the API's authority.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k3s_config::server::ServerConfig;
use k3s_http::Status;
use k3s_pki::{HostName, San, ServerPki};
use k3s_supervisor_api::NodeClaim;

use crate::host::Host;

/// What is the server's own, and the Services'.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// The node that the server itself is: it has the server's name and addresses.
    pub(crate) own_node: Option<String>,
    /// What clients know the server by, loopback left out: every kubelet has that in its certificate.
    pub(crate) server: BTreeSet<San>,
    /// The whole ranges: whoever answers at a Service's address is believed to be it.
    pub(crate) services: Vec<IpNet>,
    /// `cluster.local`
    pub(crate) cluster_domain: String,
}

impl Reserved {
    /// Of the server that is configured so.
    pub(crate) fn of(config: &ServerConfig, host: &Host, pki: &ServerPki) -> Self {
        let external = config.node.iter().flat_map(|node| &node.external_ips);
        let bound = Some(&config.bind_address).filter(|address| !address.is_unspecified());
        let addresses = host.ips.iter().chain(external).chain(bound).map(|ip| San::from(*ip));
        Self {
            own_node: config.node.is_some().then(|| host.name.clone()),
            server: pki.serving_sans().iter().cloned().chain(addresses).filter(|san| !is_loopback(san)).collect(),
            services: config.network.service_cidrs.clone(),
            cluster_domain: config.network.cluster_domain.clone(),
        }
    }

    /// Refuses a claim to any of it with 400.
    pub(crate) fn check(&self, claim: &NodeClaim) -> Result<(), Status> {
        if let Some(ip) = claim.ips.iter().find(|ip| self.services.iter().any(|range| range.contains(*ip))) {
            return Err(refusal(ip, "an address of the cluster's Services", "--node-ip or --node-external-ip"));
        }
        if self.is_service(&claim.name) {
            return Err(refusal(&claim.name, "a name of the cluster's Services", "--node-name"));
        }
        if self.own_node.as_deref() == Some(claim.name.as_str()) {
            return Ok(());
        }
        if self.server.iter().any(|san| san.covers_name(&claim.name)) {
            return Err(refusal(&claim.name, "a name of the server (--tls-san or its own)", "--node-name"));
        }
        match claim.ips.iter().find(|ip| self.server.contains(&San::from(**ip))) {
            Some(ip) => Err(refusal(ip, "an address of the server", "--node-ip or --node-external-ip")),
            None => Ok(()),
        }
    }

    fn is_service(&self, name: &HostName) -> bool {
        let name = name.as_str();
        let domain = self.cluster_domain.to_ascii_lowercase();
        let below_svc = name.strip_suffix(&domain).and_then(|rest| rest.strip_suffix('.')).unwrap_or(name);
        below_svc.ends_with(".svc") || ["kubernetes", "kubernetes.default"].contains(&name)
    }
}

fn refusal(what: impl std::fmt::Display, whose: &str, flag: &str) -> Status {
    Status::bad_request(format!("{what} is {whose}, which no node can have; choose another one with {flag}"))
}

fn is_loopback(san: &San) -> bool {
    match san {
        San::Dns(name) => name.as_str() == "localhost",
        San::Wildcard(_) => false,
        San::Ip(ip) => ip.is_loopback(),
    }
}
