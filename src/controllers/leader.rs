//! Which of the servers that share a cluster leads: by a Lease that it renews, as client-go's components do it among themselves.
//!
//! ```text
//!             the lease is nobody's, or its holder has been silent for LIFETIME
//! follower ────────────────────────────────────────────────────────────────────► leader
//!     ▲                                                                            │
//!     └── somebody else holds it, or no renewal came through within DEADLINE ◄─────┘
//! ```
//!
//! Time is the observer's own: what counts is when a renewal was seen, not what another clock wrote. A leader that cannot renew gives up
//! before any other server may take over. Renewals are rarer than client-go's: nothing that hangs on it is in a hurry, and each of them
//! is a write to a disk.

use std::time::Duration;

use k3s_supervise::{StatusLine, TaskError};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "k3s-controllers";

/// A lease is its holder's for so long after it was last renewed.
const LIFETIME: Duration = Duration::from_secs(40);
/// A leader that has not renewed it for so long leads no more.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between looks, and between renewals.
const INTERVAL: Duration = Duration::from_secs(10);
/// For one look; the next one comes soon enough.
const PATIENCE: Duration = Duration::from_secs(5);
/// For giving the lease back, which a store that is away would have the end wait for.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(2);

/// One server among those that may lead.
#[derive(Debug)]
pub struct Candidate {
    /// What the lease calls it: no two servers have the same.
    pub identity: String,
}

impl Candidate {
    /// How long a last look and giving the lease back may take.
    pub const STOPS_WITHIN: Duration = Duration::from_secs(3);

    /// Stands for election until `shutdown`, and tells in `leads` how that stands. It gives the lease back at the end, so that nobody has
    /// to wait for it.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(
        &self,
        client: Client,
        leads: &watch::Sender<bool>,
        status: StatusLine,
        shutdown: &CancellationToken,
    ) -> Result<(), TaskError> {
        let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
        let mut election = Election::new(&self.identity);
        while !shutdown.is_cancelled() {
            // A request that hangs must not keep a leader from giving up in time.
            if !matches!(timeout(PATIENCE, attempt(&leases, &mut election)).await, Ok(Ok(()))) {
                debug!("The lease of the leader could not be read or written; trying again.");
            }
            let now = Instant::now();
            let is_leader = election.leads(now);
            leads.send_if_modified(|leads| {
                let changed = *leads != is_leader;
                if changed && is_leader {
                    info!("This server leads: controllers that run on one server run here.");
                } else if changed {
                    warn!("This server leads no more.");
                }
                *leads = is_leader;
                changed
            });
            status.set(match election.holder() {
                Some(holder) => format!("{holder} leads"),
                None => "nobody leads yet".to_owned(),
            });
            shutdown.run_until_cancelled(sleep(INTERVAL)).await;
        }
        leads.send_replace(false);
        if let Some(lease) = election.release(Instant::now()) {
            // Without it the next leader waits for the lease to end.
            let _ = timeout(PATIENCE_AT_THE_END, leases.replace(NAME, &PostParams::default(), &lease)).await;
        }
        Ok(())
    }
}

async fn attempt(leases: &Api<Lease>, election: &mut Election) -> kube::Result<()> {
    let found = leases.get_opt(NAME).await?;
    let Some(lease) = election.observe(found, Instant::now()) else { return Ok(()) };
    // Before it is sent: nobody else counts from later.
    let sent = Instant::now();
    let params = PostParams::default();
    let written = match lease.metadata.resource_version {
        Some(_) => leases.replace(NAME, &params, &lease).await?,
        None => leases.create(&params, &lease).await?,
    };
    election.written(written, sent);
    Ok(())
}

/// What one candidate knows of the lease, and what follows.
#[derive(Debug)]
struct Election {
    identity: String,
    /// The lease, and when it was first seen like this.
    seen: Option<(Lease, Instant)>,
    /// When this candidate's last renewal was sent that came through.
    renewed: Option<Instant>,
}

impl Election {
    fn new(identity: &str) -> Self {
        Self { identity: identity.to_owned(), seen: None, renewed: None }
    }

    /// Takes what the API holds now; returns the lease to write, if this candidate has to renew it or may take it.
    fn observe(&mut self, found: Option<Lease>, now: Instant) -> Option<Lease> {
        let Some(found) = found else {
            self.seen = None;
            return Some(self.lease(None, 0));
        };
        let is_same = self.seen.as_ref().is_some_and(|(seen, _)| seen.spec == found.spec);
        let since = self.seen.take().filter(|_| is_same).map_or(now, |(_, since)| since);
        let holder = holder_of(&found);
        let is_own = holder == Some(&*self.identity);
        if !is_own {
            self.renewed = None;
        }
        let is_free = holder.is_none() || now >= since + LIFETIME;
        let transitions = found.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
        let next = (is_own || is_free).then(|| self.lease(Some(&found), transitions + i32::from(!is_own)));
        self.seen = Some((found, since));
        next
    }

    /// The lease was written as it was asked for.
    fn written(&mut self, lease: Lease, sent: Instant) {
        self.seen = Some((lease, sent));
        self.renewed = Some(sent);
    }

    fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now < renewed + DEADLINE)
    }

    fn holder(&self) -> Option<&str> {
        holder_of(&self.seen.as_ref()?.0)
    }

    /// The lease as nobody's, if this candidate still leads.
    fn release(&self, now: Instant) -> Option<Lease> {
        let (lease, _) = self.seen.as_ref().filter(|_| self.leads(now))?;
        let mut lease = lease.clone();
        lease.spec.get_or_insert_default().holder_identity = Some(String::new());
        Some(lease)
    }

    fn lease(&self, present: Option<&Lease>, transitions: i32) -> Lease {
        let time = MicroTime(Timestamp::now());
        let acquired = present
            .filter(|lease| holder_of(lease) == Some(&*self.identity))
            .and_then(|lease| lease.spec.as_ref()?.acquire_time.clone());
        Lease {
            metadata: match present {
                Some(lease) => lease.metadata.clone(),
                None => {
                    ObjectMeta { name: Some(NAME.into()), namespace: Some(NAMESPACE.into()), ..ObjectMeta::default() }
                }
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                acquire_time: Some(acquired.unwrap_or_else(|| time.clone())),
                renew_time: Some(time),
                lease_duration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn holder_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the API does with a lease that is written.
    fn store(mut lease: Lease, version: u32) -> Lease {
        lease.metadata.resource_version = Some(version.to_string());
        lease
    }

    fn elected(identity: &str, now: Instant) -> (Election, Lease) {
        let mut election = Election::new(identity);
        let lease = store(election.observe(None, now).unwrap(), 1);
        assert!(!election.leads(now), "not before it is written");
        election.written(lease.clone(), now);
        assert!(election.leads(now));
        (election, lease)
    }

    #[test]
    fn the_first_to_write_leads_and_renews() {
        let now = Instant::now();
        let (mut one, lease) = elected("one", now);
        let later = now + INTERVAL;
        let renewed = one.observe(Some(lease.clone()), later).unwrap();
        assert_eq!(renewed.metadata.resource_version.as_deref(), Some("1"), "only as it was seen");
        let (before, after) = (lease.spec.unwrap(), renewed.spec.clone().unwrap());
        assert_eq!((before.acquire_time, before.lease_transitions), (after.acquire_time, after.lease_transitions));
        one.written(store(renewed, 2), later);
        assert!(one.leads(now + DEADLINE));
        assert_eq!(one.holder(), Some("one"));
    }

    #[test]
    fn a_holder_that_is_silent_for_too_long_is_followed_by_another() {
        let now = Instant::now();
        let (one, lease) = elected("one", now);
        let mut two = Election::new("two");
        // It may have been renewed the moment before: nobody knows.
        assert_eq!(two.observe(Some(lease.clone()), now), None);
        assert_eq!(two.observe(Some(lease.clone()), now + LIFETIME - INTERVAL), None);
        assert!(!two.leads(now + LIFETIME));
        let taken = two.observe(Some(lease), now + LIFETIME).unwrap();
        assert_eq!(taken.spec.as_ref().unwrap().lease_transitions, Some(1));
        assert!(!one.leads(now + LIFETIME), "the former leader gave up before");
        two.written(store(taken, 2), now + LIFETIME);
        assert!(two.leads(now + LIFETIME));
    }

    #[test]
    fn a_renewal_that_is_seen_begins_the_wait_anew() {
        let now = Instant::now();
        let (mut one, lease) = elected("one", now);
        let mut two = Election::new("two");
        assert_eq!(two.observe(Some(lease.clone()), now), None);
        let later = now + LIFETIME - INTERVAL;
        let mut renewed = store(one.observe(Some(lease), later).unwrap(), 2);
        renewed.spec.as_mut().unwrap().renew_time = Some(MicroTime(Timestamp::now() + Duration::from_secs(1)));
        assert_eq!(two.observe(Some(renewed.clone()), later), None);
        assert_eq!(two.observe(Some(renewed.clone()), now + LIFETIME), None);
        assert!(two.observe(Some(renewed), later + LIFETIME).is_some());
    }

    #[test]
    fn a_leader_gives_up_when_nothing_comes_through_or_another_holds_the_lease() {
        let now = Instant::now();
        let (one, lease) = elected("one", now);
        assert!(one.leads(now + DEADLINE - Duration::from_millis(1)));
        assert!(!one.leads(now + DEADLINE));
        assert_eq!(one.release(now + DEADLINE), None, "it is not its any more");

        let (mut one, _) = elected("one", now);
        let mut of_two = lease;
        of_two.spec.as_mut().unwrap().holder_identity = Some("two".into());
        assert_eq!(one.observe(Some(of_two), now), None);
        assert!(!one.leads(now));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let now = Instant::now();
        let (one, _) = elected("one", now);
        let released = store(one.release(now).unwrap(), 2);
        let mut two = Election::new("two");
        assert!(two.observe(Some(released), now).is_some());
    }
}
