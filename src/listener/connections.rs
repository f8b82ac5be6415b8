//! The connections of a listener: how many there are, whose they are, and who has to go for the next one.
//!
//! ```text
//! stranger ──credentials──▶ authenticated ──▶ left
//!    └──a younger stranger needs the place──▶ displaced
//! ```
//!
//! A stranger that comes is never refused: where its source, or all of them together, have as many places as they may, the oldest stranger
//! of that source, or of the source that has most, leaves. So who floods a listener floods itself, and who comes from the same address has
//! time to show credentials.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    limits::Limits,
    memory::{Held, Trimmer},
    repeated::Repeated,
    source::Source,
};

/// Connections that have to end for the memory that they took to be given back.
const MANY: usize = 100;

/// The connections of a listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Shared>);

/// A connection's place among the others, until it is dropped.
#[derive(Debug)]
pub struct Place {
    connections: Connections,
    source: Source,
    id: u64,
    authenticated: CancellationToken,
    displaced: CancellationToken,
    turn: Arc<Semaphore>,
    _held: Held,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    trimmer: Trimmer,
}

#[derive(Debug)]
struct Table {
    limits: Limits,
    sources: HashMap<Source, OfSource>,
    /// Loopback's aside.
    strangers: usize,
    authenticated: usize,
    next: u64,
    displaced: Repeated,
}

/// The connections of one source.
#[derive(Debug)]
struct OfSource {
    /// By age.
    strangers: BTreeMap<u64, CancellationToken>,
    authenticated: usize,
    /// Of one.
    turn: Arc<Semaphore>,
}

impl Default for OfSource {
    fn default() -> Self {
        Self { strangers: BTreeMap::new(), authenticated: 0, turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        let table = Table {
            limits,
            sources: HashMap::new(),
            strangers: 0,
            authenticated: 0,
            next: 0,
            displaced: Repeated::default(),
        };
        Self(Arc::new(Shared { table: Mutex::new(table), trimmer: Trimmer::new(MANY) }))
    }

    /// A stranger's place. The one that has to go for it, if one has to, is told.
    pub fn enter(&self, address: IpAddr) -> Place {
        let source = Source::from(address);
        let mut table = self.lock();
        if let Some(crowded) = table.crowded(source) {
            table.displace_oldest(crowded);
        }
        let (id, displaced) = (table.next, CancellationToken::new());
        table.next += 1;
        let of_source = table.sources.entry(source).or_default();
        of_source.strangers.insert(id, displaced.clone());
        let turn = of_source.turn.clone();
        table.count_strangers(source, 1);
        drop(table);
        Place {
            connections: self.clone(),
            source,
            id,
            authenticated: CancellationToken::new(),
            displaced,
            turn,
            _held: self.0.trimmer.hold(),
        }
    }

    /// How many there are, those included that were displaced and have not left yet.
    pub(crate) fn count(&self) -> usize {
        self.0.trimmer.held()
    }

    /// Whenever many have ended, gives back the memory that they took.
    pub(crate) async fn give_memory_back(&self) {
        self.0.trimmer.run().await;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No method of it panics halfway.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The client has shown credentials: from now on nobody displaces it. Where clients with credentials have all places that they may, it
    /// stays a stranger.
    pub(crate) fn authenticate(&self) {
        if !self.is_authenticated() && self.connections.lock().authenticate(self.source, self.id) {
            self.authenticated.cancel();
        }
    }

    /// Whether the client has shown credentials.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.authenticated.is_cancelled()
    }

    /// Whether the client is on this host.
    pub(crate) fn is_local(&self) -> bool {
        self.source == Source::Loopback
    }

    /// Whether a client from the same source has shown credentials, and is there.
    pub(crate) fn is_of_known_source(&self) -> bool {
        self.connections.lock().sources.get(&self.source).is_some_and(|of_source| of_source.authenticated > 0)
    }

    /// Returns when the client has shown credentials.
    pub(crate) async fn authenticated(&self) {
        self.authenticated.cancelled().await;
    }

    /// The source's turn to have something done for it that takes the processor.
    pub(crate) async fn turn(&self) -> SemaphorePermit<'_> {
        self.turn.acquire().await.expect("it is never closed")
    }

    /// Returns when another stranger needs the place: the connection is to end.
    pub(crate) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().leave(self.source, self.id, self.is_authenticated());
    }
}

impl Table {
    /// The source that has to give up a place for a stranger from `source`.
    fn crowded(&self, source: Source) -> Option<Source> {
        let strangers = |source: &OfSource| source.strangers.len();
        if self.sources.get(&source).map_or(0, strangers) >= self.limits.strangers_of_source {
            return Some(source);
        }
        if source == Source::Loopback || self.strangers < self.limits.strangers {
            return None;
        }
        let others = self.sources.iter().filter(|(source, _)| **source != Source::Loopback);
        others.max_by_key(|(_, of_source)| strangers(of_source)).map(|(source, _)| *source)
    }

    fn displace_oldest(&mut self, source: Source) {
        let oldest = self.sources.get_mut(&source).and_then(|of_source| of_source.strangers.pop_first());
        let Some((_, displaced)) = oldest else { return };
        displaced.cancel();
        self.count_strangers(source, -1);
        if let Some(displaced) = self.displaced.count(Instant::now()) {
            warn!(%source, displaced, "More clients connect than are kept before they show credentials; the oldest of them are sent away.");
        }
    }

    fn authenticate(&mut self, source: Source, id: u64) -> bool {
        let Some(of_source) = self.sources.get_mut(&source) else { return false };
        let room = self.authenticated < self.limits.authenticated
            && (source == Source::Loopback || of_source.authenticated < self.limits.authenticated_of_source);
        // It may have been displaced a moment ago.
        if !room || of_source.strangers.remove(&id).is_none() {
            return false;
        }
        of_source.authenticated += 1;
        self.authenticated += 1;
        self.count_strangers(source, -1);
        true
    }

    fn leave(&mut self, source: Source, id: u64, authenticated: bool) {
        let Some(of_source) = self.sources.get_mut(&source) else { return };
        let stranger = of_source.strangers.remove(&id).is_some();
        of_source.authenticated -= usize::from(authenticated);
        if of_source.strangers.is_empty() && of_source.authenticated == 0 {
            self.sources.remove(&source);
        }
        self.authenticated -= usize::from(authenticated);
        if stranger {
            self.count_strangers(source, -1);
        }
    }

    fn count_strangers(&mut self, source: Source, change: isize) {
        if source != Source::Loopback {
            self.strangers = self.strangers.saturating_add_signed(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { strangers: 6, strangers_of_source: 3, authenticated: 4, authenticated_of_source: 2 };

    fn enter(connections: &Connections, address: &str) -> Place {
        connections.enter(address.parse().unwrap())
    }

    fn standing(places: &[Place]) -> Vec<bool> {
        places.iter().map(|place| !place.displaced.is_cancelled()).collect()
    }

    #[test]
    fn a_source_that_has_all_its_places_displaces_its_own_oldest() {
        let connections = Connections::new(LIMITS);
        let other = enter(&connections, "192.0.2.2");
        let places = Vec::from_iter((0..5).map(|n| enter(&connections, &format!("2001:db8::{n}"))));
        assert_eq!(standing(&places), [false, false, true, true, true]);
        assert_eq!(standing(&[other]), [true]);
    }

    #[test]
    fn when_strangers_have_all_their_places_the_source_with_most_gives_one_up() {
        let connections = Connections::new(LIMITS);
        let many = Vec::from_iter((0..3).map(|_| enter(&connections, "192.0.2.1")));
        let few = Vec::from_iter((0..3).map(|n| enter(&connections, &format!("198.51.100.{n}"))));
        let late = enter(&connections, "203.0.113.1");
        assert_eq!((standing(&many), standing(&few)), (vec![false, true, true], vec![true; 3]));
        let loopback = Vec::from_iter((1..4).map(|n| enter(&connections, &format!("127.0.0.{n}"))));
        assert_eq!(standing(&many), [false, true, true], "loopback has places of its own");
        assert_eq!(connections.count(), 7 + 3, "one is about to leave");
        drop((many, few, late, loopback));
        assert!(connections.count() == 0 && connections.lock().sources.is_empty());
        assert_eq!(connections.lock().strangers, 0);
    }

    #[test]
    fn who_has_shown_credentials_is_not_displaced_and_has_limits_too() {
        let connections = Connections::new(LIMITS);
        let places = Vec::from_iter((0..3).map(|_| enter(&connections, "192.0.2.1")));
        places.iter().for_each(Place::authenticate);
        assert_eq!(Vec::from_iter(places.iter().map(Place::is_authenticated)), [true, true, false]);
        assert!(places[2].is_of_known_source() && !enter(&connections, "192.0.2.2").is_of_known_source());
        let strangers = Vec::from_iter((0..3).map(|_| enter(&connections, "192.0.2.1")));
        assert_eq!((standing(&places), standing(&strangers)), (vec![true, true, false], vec![true; 3]));
        places[2].authenticate();
        assert!(!places[2].is_authenticated(), "it was displaced before");
        drop((places, strangers));
        assert_eq!((connections.count(), connections.lock().authenticated), (0, 0));
    }

    #[tokio::test]
    async fn a_source_takes_turns_with_itself_and_with_nobody_else() {
        let connections = Connections::new(LIMITS);
        let [first, second, other] =
            ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|address| enter(&connections, address));
        let turn = first.turn().await;
        assert!(second.turn.try_acquire().is_err());
        drop(other.turn().await);
        drop(turn);
        drop(second.turn().await);
    }
}
