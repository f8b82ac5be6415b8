//! Which servers of a cluster live, where they share a datastore.
//!
//! Each kube-apiserver keeps a Lease `kube-system/apiserver-…`: it renews it every ten seconds and deletes it when it ends in peace.
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

/// The servers, as one of them sees them.
#[derive(Debug)]
pub(crate) struct ApiServers {
    /// Where its own front is. It lives: its API is what it asks.
    own: SocketAddr,
    hostname: String,
    /// The others' leases, by name.
    others: BTreeMap<String, Seen>,
    /// Whether all leases that there are have been seen.
    complete: bool,
}

#[derive(Debug)]
struct Seen {
    /// `None` until its server has written it.
    address: Option<SocketAddr>,
    renewed: Option<MicroTime>,
    at: Instant,
}

/// What has to be done about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Nothing.
    Known,
    /// It is this server's own, and does not say where its front is.
    OwnWithoutAddress,
}

impl ApiServers {
    /// Of the server on the machine `hostname`, whose front is at `own`.
    pub(crate) fn new(own: SocketAddr, hostname: String) -> Self {
        Self { own, hostname, others: BTreeMap::new(), complete: false }
    }

    /// All leases are about to be told from the beginning. Until they are, nobody counts as gone: it may be that they were not heard.
    pub(crate) fn begin(&mut self) {
        self.others.clear();
        self.complete = false;
    }

    /// All leases have been told.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// A lease appeared or was renewed.
    pub(crate) fn see(&mut self, lease: &Lease, now: Instant) -> Sight {
        let address = lease.annotations().get(ADDRESS).and_then(|address| address.parse().ok());
        if lease.labels().get(HOSTNAME) == Some(&self.hostname) {
            return if address == Some(self.own) { Sight::Known } else { Sight::OwnWithoutAddress };
        }
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let before = self.others.get(&lease.name_any()).filter(|seen| seen.renewed == renewed);
        let at = before.map_or(now, |seen| seen.at);
        self.others.insert(lease.name_any(), Seen { address, renewed, at });
        Sight::Known
    }

    /// A lease was deleted.
    pub(crate) fn forget(&mut self, lease: &Lease) {
        self.others.remove(&lease.name_any());
    }

    /// Where the API is served; `None` until all is known that there is to know.
    pub(crate) fn alive(&self, now: Instant) -> Option<BTreeSet<SocketAddr>> {
        let others = self.others.values().filter(|seen| now < seen.at + LIFETIME).filter_map(|seen| seen.address);
        self.complete.then(|| others.chain([self.own]).collect())
    }

    /// When the next of the others will have been silent for too long.
    pub(crate) fn next_end(&self, now: Instant) -> Option<Instant> {
        self.others.values().map(|seen| seen.at + LIFETIME).filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10.0.0.1:6443";
    const OTHER: &str = "10.0.0.2:6443";

    fn lease(hostname: &str, address: Option<&str>, renewed: u64) -> Lease {
        let annotations = address.map(|address| serde_json::json!({ ADDRESS: address }));
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": format!("apiserver-{hostname}"), "labels": {HOSTNAME: hostname}, "annotations": annotations},
            "spec": {"renewTime": format!("2026-11-21T18:00:{renewed:02}.000000Z")},
        }))
        .unwrap()
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
        servers.begin();
        servers.see(&lease("two", Some(OTHER), 0), now);
        assert_eq!(servers.alive(now), None);
        servers.complete();
        assert_eq!(servers.alive(now), set(&[OWN, OTHER]));
    }

    #[test]
    fn a_server_counts_until_it_is_silent_for_too_long() {
        let (mut servers, start) = (servers(), Instant::now());
        servers.complete();
        servers.see(&lease("two", Some(OTHER), 0), start);
        assert_eq!(servers.next_end(start), Some(start + LIFETIME));
        let renewed = start + Duration::from_secs(10);
        servers.see(&lease("two", Some(OTHER), 10), renewed);
        assert_eq!(servers.alive(start + LIFETIME), set(&[OWN, OTHER]));
        // Its lease is told again, but it is the same.
        servers.see(&lease("two", Some(OTHER), 10), renewed + Duration::from_secs(5));
        assert_eq!(servers.alive(renewed + LIFETIME), set(&[OWN]));
        assert_eq!(servers.next_end(renewed + LIFETIME), None);
        // After a break in the watch nobody knows how long it has been silent.
        servers.begin();
        servers.see(&lease("two", Some(OTHER), 10), renewed + LIFETIME);
        servers.complete();
        assert_eq!(servers.alive(renewed + LIFETIME), set(&[OWN, OTHER]));
    }

    #[test]
    fn a_server_that_ends_in_peace_goes_at_once() {
        let (mut servers, now) = (servers(), Instant::now());
        servers.complete();
        servers.see(&lease("two", Some(OTHER), 0), now);
        servers.forget(&lease("two", Some(OTHER), 0));
        assert_eq!((servers.alive(now), servers.next_end(now)), (set(&[OWN]), None));
    }

    #[test]
    fn its_own_lease_gets_its_address_and_others_are_awaited() {
        let (mut servers, now) = (servers(), Instant::now());
        servers.complete();
        assert_eq!(servers.see(&lease("one", None, 0), now), Sight::OwnWithoutAddress);
        assert_eq!(servers.see(&lease("one", Some("10.0.0.9:6443"), 0), now), Sight::OwnWithoutAddress);
        assert_eq!(servers.see(&lease("one", Some(OWN), 0), now), Sight::Known);
        assert_eq!(servers.see(&lease("two", None, 0), now), Sight::Known);
        assert_eq!(servers.alive(now), set(&[OWN]));
    }
}
