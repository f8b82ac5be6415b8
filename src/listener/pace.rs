//! How many handshakes a second hosts are given.
//!
//! The answer to a ClientHello takes the processor for the best part of a millisecond, a hundred times what it costs to send one. A host
//! that connects without end is given a few percent of the processor, and all that nobody knows together less than half of it.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Mutex as FairMutex,
    time::{Instant, sleep},
};

use crate::budget::{Budget, Rate, Sources};

/// Of one source: a node that comes back with all its clients has them at once.
const OF_SOURCE: Rate = Rate { burst: 100, interval: Duration::from_millis(10) };
/// Of all sources from which nobody has shown credentials.
const OF_STRANGERS: Rate = Rate { burst: 400, interval: Duration::from_micros(2500) };

/// When the next handshake may begin. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pace(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sources: Mutex<Sources>,
    /// Held while a stranger waits, so that they are served in the order in which they came.
    strangers: FairMutex<Budget>,
}

impl Pace {
    /// Everybody has a burst.
    pub(crate) fn new() -> Self {
        let strangers = FairMutex::new(Budget::new(Instant::now()));
        Self(Arc::new(Shared { sources: Mutex::new(Sources::new(OF_SOURCE)), strangers }))
    }

    /// Returns when `source` may be given a handshake. `known` is whether somebody there has shown credentials. One source waits once at a
    /// time: [`Place::turn`](crate::Place::turn). Who gives up has spent nothing.
    pub(crate) async fn wait(&self, source: IpAddr, known: bool) {
        until_affordable(|now| self.sources().affordable_in(source, now)).await;
        if !known {
            let mut strangers = self.0.strangers.lock().await;
            until_affordable(|now| strangers.affordable_in(OF_STRANGERS, now)).await;
            strangers.spend(OF_STRANGERS, Instant::now());
        }
        self.sources().spend(source, Instant::now());
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        // No method of it panics halfway.
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when `affordable_in` is no time any more.
async fn until_affordable(affordable_in: impl Fn(Instant) -> Duration) {
    loop {
        let pause = affordable_in(Instant::now());
        if pause.is_zero() {
            return;
        }
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    fn host(number: u32) -> IpAddr {
        IpAddr::V4((0xc000_0200 + number).into())
    }

    /// Handshakes that a source is given in a second.
    async fn given(pace: &Pace, source: IpAddr, known: bool) -> usize {
        let mut given = 0;
        let asking = async {
            loop {
                pace.wait(source, known).await;
                given += 1;
            }
        };
        let _ = timeout(Duration::from_secs(1), asking).await;
        given
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_has_a_burst_and_then_its_part() {
        let pace = Pace::new();
        assert!((195..=205).contains(&given(&pace, host(1), true).await));
        assert!((95..=105).contains(&given(&pace, host(1), true).await));
        assert!((195..=205).contains(&given(&pace, host(2), true).await), "others have their own");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_share_and_are_not_in_the_way_of_known_hosts() {
        let pace = Pace::new();
        let mut hosts = JoinSet::new();
        for number in 0..50 {
            let pace = pace.clone();
            hosts.spawn(async move { given(&pace, host(number), false).await });
        }
        assert!(given(&pace, host(100), true).await >= 195);
        let given = Vec::from_iter(hosts.join_all().await);
        assert!((795..=805).contains(&given.iter().sum::<usize>()), "{given:?}");
        assert!(given.iter().all(|given| *given >= 8), "each has its turn: {given:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_has_spent_nothing() {
        let pace = Pace::new();
        given(&pace, host(1), false).await;
        for _ in 0..1000 {
            let _ = timeout(Duration::from_millis(1), pace.wait(host(1), false)).await;
        }
        let start = Instant::now();
        pace.wait(host(1), false).await;
        assert!(start.elapsed() <= Duration::from_millis(20), "{:?}", start.elapsed());
    }
}
