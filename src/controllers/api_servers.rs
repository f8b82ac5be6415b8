//! Which servers of a cluster live, where they share a datastore.
//!
//! Each kube-apiserver keeps a Lease `kube-system/apiserver-…`: it renews it every ten seconds and deletes it when it ends gracefully.
//! Its server writes into that lease where the front is, so that nothing more has to be renewed:
//!
//! ```text
//! lease appears ──own server annotates──► counts ──deleted, or not renewed for LIFETIME──► gone
//! ```
//! Time is the observer's own: what counts is when a renewal was seen, not what another clock wrote into it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::ResourceExt as _;
use tokio::time::Instant;

/// The annotation that says where a server's front is, as `10.0.0.1:6443`.
pub(crate) const ADDRESS: &str = "k3s.io/api-address";

/// The label that all these leases have.
pub(crate) const SELECTOR: &str = "apiserver.kubernetes.io/identity=kube-apiserver";

/// kube-apiserver's label of the machine it runs on.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Two renewals may fail, and one may be late.
const LIFETIME: Duration = Duration::from_secs(25);

/// What a lease says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServerLease {
    hostname: Option<String>,
    /// `None` until its server has written it.
    address: Option<SocketAddr>,
    renewed: Option<MicroTime>,
}

impl ServerLease {
    pub(crate) fn of(lease: &Lease) -> Self {
        Self {
            hostname: lease.labels().get(HOSTNAME).cloned(),
            address: lease.annotations().get(ADDRESS).and_then(|address| address.parse().ok()),
            renewed: lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()),
        }
    }
}

/// The servers, as one of them sees them.
#[derive(Debug)]
pub(crate) struct ApiServers {
    /// Where its own front is. It lives: its API is what it asks.
    own: SocketAddr,
    hostname: String,
    /// The others' leases, by name; `None` until all that there are have been seen.
    others: Option<BTreeMap<String, Observation>>,
}

#[derive(Debug)]
struct Observation {
    lease: ServerLease,
    /// When it was first seen like this.
    at: Instant,
}

impl ApiServers {
    /// Of the server on the machine `hostname`, whose front is at `own`.
    pub(crate) fn new(own: SocketAddr, hostname: String) -> Self {
        Self { own, hostname, others: None }
    }

    /// Takes all leases that there are, by name. Returns the server's own if it does not say where its front is.
    pub(crate) fn observe(&mut self, leases: BTreeMap<String, ServerLease>, now: Instant) -> Option<String> {
        let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            leases.into_iter().partition(|(_, lease)| lease.hostname.as_ref() == Some(&self.hostname));
        let mut before = self.others.take().unwrap_or_default();
        let observe = |(name, lease): (String, ServerLease)| {
            let same = before.remove(&name).filter(|seen| seen.lease == lease);
            let at = same.map_or(now, |seen| seen.at);
            (name, Observation { lease, at })
        };
        self.others = Some(others.into_iter().map(observe).collect());
        own.into_iter().find(|(_, lease)| lease.address != Some(self.own)).map(|(name, _)| name)
    }

    /// Where the API is served; `None` until all is known that there is to know.
    pub(crate) fn alive(&self, now: Instant) -> Option<BTreeSet<SocketAddr>> {
        let others = self.others.as_ref()?.values().filter(|seen| now < seen.at + LIFETIME);
        Some(others.filter_map(|seen| seen.lease.address).chain([self.own]).collect())
    }

    /// When the next of the others will have been silent for too long.
    pub(crate) fn next_end(&self, now: Instant) -> Option<Instant> {
        self.others.iter().flat_map(BTreeMap::values).map(|seen| seen.at + LIFETIME).filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10.0.0.1:6443";
    const OTHER: &str = "10.0.0.2:6443";

    fn lease(hostname: &str, address: Option<&str>, renewed: u64) -> (String, ServerLease) {
        let annotations = address.map(|address| serde_json::json!({ ADDRESS: address }));
        let lease: Lease = serde_json::from_value(serde_json::json!({
            "metadata": {"name": format!("apiserver-{hostname}"), "labels": {HOSTNAME: hostname}, "annotations": annotations},
            "spec": {"renewTime": format!("2026-11-21T18:00:{renewed:02}.000000Z")},
        }))
        .unwrap();
        (lease.name_any(), ServerLease::of(&lease))
    }

    fn servers() -> ApiServers {
        ApiServers::new(OWN.parse().unwrap(), "one".into())
    }

    fn set(addresses: &[&str]) -> Option<BTreeSet<SocketAddr>> {
        Some(addresses.iter().map(|address| address.parse().unwrap()).collect())
    }

    #[test]
    fn nothing_is_told_before_all_is_known() {
        let (mut servers, now) = (servers(), Instant::now());
        assert_eq!(servers.alive(now), None);
        servers.observe([lease("two", Some(OTHER), 0)].into(), now);
        assert_eq!(servers.alive(now), set(&[OWN, OTHER]));
    }

    #[test]
    fn a_server_counts_until_it_is_silent_for_too_long() {
        let (mut servers, start) = (servers(), Instant::now());
        servers.observe([lease("two", Some(OTHER), 0)].into(), start);
        assert_eq!(servers.next_end(start), Some(start + LIFETIME));
        let renewed = start + Duration::from_secs(10);
        servers.observe([lease("two", Some(OTHER), 10)].into(), renewed);
        assert_eq!(servers.alive(start + LIFETIME), set(&[OWN, OTHER]));
        // Its lease is told again, but it is the same.
        servers.observe([lease("two", Some(OTHER), 10)].into(), renewed + Duration::from_secs(5));
        assert_eq!(servers.alive(renewed + LIFETIME), set(&[OWN]));
        assert_eq!(servers.next_end(renewed + LIFETIME), None);
    }

    #[test]
    fn a_server_that_ends_gracefully_goes_at_once() {
        let (mut servers, now) = (servers(), Instant::now());
        servers.observe([lease("two", Some(OTHER), 0)].into(), now);
        servers.observe(BTreeMap::new(), now);
        assert_eq!((servers.alive(now), servers.next_end(now)), (set(&[OWN]), None));
    }

    #[test]
    fn its_own_lease_gets_its_address_and_others_are_awaited() {
        let (mut servers, now) = (servers(), Instant::now());
        let own = Some("apiserver-one".to_owned());
        assert_eq!(servers.observe([lease("one", None, 0)].into(), now), own);
        assert_eq!(servers.observe([lease("one", Some("10.0.0.9:6443"), 0)].into(), now), own);
        assert_eq!(servers.observe([lease("one", Some(OWN), 0)].into(), now), None);
        assert_eq!(servers.observe([lease("two", None, 0)].into(), now), None);
        assert_eq!(servers.alive(now), set(&[OWN]));
    }
}
