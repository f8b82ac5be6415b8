//! Leases: which there are, when they end, which keys go with them.
//!
//! ```text
//! grant ──► Granted ──keepalive──► Renewed ──► (deadline passes, or revoke) ──► gone, with its keys
//! ```
//! A granted lease keeps its end over a restart, so a key with a time to live does not live longer because the store
//! was restarted. Once renewed it starts again with its full time, as etcd's leases do: renewals are not written.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::RequestError;
use crate::key::Key;
use crate::revision::LeaseId;

/// Shortest time to live that is granted, as etcd with its default election timeout.
const MIN_TTL: i64 = 2;
/// Longest time to live that may be asked for, as etcd.
const MAX_TTL: i64 = 9_000_000_000;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    leases: HashMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Debug)]
struct Lease {
    /// Seconds.
    ttl: i64,
    deadline: Instant,
    renewed: bool,
    keys: BTreeSet<Key>,
}

/// A lease as its holder sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseState {
    /// Seconds until it ends.
    pub(crate) remaining: i64,
    /// Seconds that it was granted for.
    pub(crate) granted: i64,
    pub(crate) keys: Vec<Key>,
}

/// What a keepalive did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Renewal {
    /// Seconds that the lease has again.
    pub(crate) ttl: i64,
    /// Whether this is the lease's first one: its end in the log must be erased.
    pub(crate) first: bool,
}

/// The time to live that a request for `ttl` seconds gets.
pub(crate) fn grantable(ttl: i64) -> Result<i64, RequestError> {
    if ttl > MAX_TTL { Err(RequestError::LeaseTtlTooLarge) } else { Ok(ttl.max(MIN_TTL)) }
}

impl Lessor {
    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// An id for a new lease: positive, and nobody's yet.
    pub(crate) fn unused_id(&self) -> LeaseId {
        loop {
            // The standard library's hasher is seeded at random.
            let random = RandomState::new().build_hasher().finish() >> 1;
            let id = LeaseId(i64::try_from(random).unwrap_or(i64::MAX));
            if !id.is_none() && !self.contains(id) {
                return id;
            }
        }
    }

    /// Adds a lease that ends at `deadline`. An existing one is left alone.
    pub(crate) fn insert(&mut self, id: LeaseId, ttl: i64, deadline: Instant, renewed: bool) {
        self.leases.entry(id).or_insert_with(|| {
            self.deadlines.insert((deadline, id));
            Lease { ttl, deadline, renewed, keys: BTreeSet::new() }
        });
    }

    /// Gives a lease its full time again; `None` if there is no such lease.
    pub(crate) fn renew(&mut self, id: LeaseId, now: Instant) -> Option<Renewal> {
        let lease = self.leases.get_mut(&id)?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = deadline(now, lease.ttl);
        self.deadlines.insert((lease.deadline, id));
        let first = !std::mem::replace(&mut lease.renewed, true);
        Some(Renewal { ttl: lease.ttl, first })
    }

    /// Forgets a lease.
    pub(crate) fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            self.deadlines.remove(&(lease.deadline, id));
        }
    }

    /// Seconds that a lease was granted for; zero for none.
    pub(crate) fn ttl(&self, id: LeaseId) -> i64 {
        self.leases.get(&id).map_or(0, |lease| lease.ttl)
    }

    /// Moves a key from the lease it had to the one it has now.
    pub(crate) fn attach(&mut self, key: &Key, before: LeaseId, after: LeaseId) {
        if before != after
            && let Some(lease) = self.leases.get_mut(&before)
        {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&after) {
            lease.keys.insert(key.clone());
        }
    }

    /// The keys that go when the lease ends, in key order; `None` if there is no such lease.
    pub(crate) fn keys(&self, id: LeaseId) -> Option<Vec<Key>> {
        Some(self.leases.get(&id)?.keys.iter().cloned().collect())
    }

    pub(crate) fn state(&self, id: LeaseId, now: Instant) -> Option<LeaseState> {
        let lease = self.leases.get(&id)?;
        let remaining = lease.deadline.saturating_duration_since(now).as_secs();
        Some(LeaseState {
            remaining: i64::try_from(remaining).unwrap_or(i64::MAX),
            granted: lease.ttl,
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// All leases, the one that ends next first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.deadlines.iter().map(|(_, id)| *id)
    }

    /// When the next lease ends.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The leases whose time is over.
    pub(crate) fn expired(&self, now: Instant) -> Vec<LeaseId> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, id)| *id).collect()
    }
}

/// When a lease of `ttl` seconds that begins now ends.
pub(crate) fn deadline(now: Instant, ttl: i64) -> Instant {
    // A table from elsewhere may say anything.
    now + Duration::from_secs(u64::try_from(ttl.clamp(0, MAX_TTL)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_unless_it_is_renewed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lessor = Lessor::default();
        let (kept, lost) = (LeaseId(1), LeaseId(2));
        lessor.insert(kept, 10, deadline(start, 10), false);
        lessor.insert(lost, 5, deadline(start, 5), false);
        assert_eq!(lessor.earliest(), Some(at(5)));
        assert_eq!(lessor.renew(kept, at(4)), Some(Renewal { ttl: 10, first: true }));
        assert_eq!(lessor.renew(kept, at(4)), Some(Renewal { ttl: 10, first: false }));
        assert_eq!(lessor.expired(at(10)), [lost]);
        lessor.remove(lost);
        assert_eq!(lessor.renew(lost, at(10)), None);
        assert_eq!(lessor.earliest(), Some(at(14)));
        assert_eq!(lessor.state(kept, at(6)).map(|s| s.remaining), Some(8));
    }

    #[test]
    fn keys_follow_the_lease_they_were_last_put_with() {
        let mut lessor = Lessor::default();
        let (one, two) = (LeaseId(1), LeaseId(2));
        for id in [one, two] {
            lessor.insert(id, 10, deadline(Instant::now(), 10), false);
        }
        let key = Key::from_static(b"k");
        lessor.attach(&key, LeaseId::NONE, one);
        lessor.attach(&key, one, two);
        assert_eq!(lessor.keys(one), Some(vec![]));
        assert_eq!(lessor.keys(two), Some(vec![key.clone()]));
        lessor.attach(&key, two, LeaseId::NONE);
        assert_eq!(lessor.keys(two), Some(vec![]));
    }

    #[test]
    fn times_to_live_have_etcds_bounds() {
        assert_eq!(grantable(0), Ok(2));
        assert_eq!(grantable(60), Ok(60));
        assert_eq!(grantable(MAX_TTL + 1), Err(RequestError::LeaseTtlTooLarge));
        let now = Instant::now();
        assert_eq!((deadline(now, i64::MIN), deadline(now, i64::MAX)), (now, deadline(now, MAX_TTL)));
    }
}
