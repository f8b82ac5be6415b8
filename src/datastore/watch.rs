//! Watches: who waits for which keys, and what they have not seen yet.
//!
//! A published event goes into a ring, and each watcher that it matches gets a mark: the first revision that it still
//! has to see. A watcher without a mark has seen everything up to the published revision, so nobody has to tell it
//! that other keys changed. One that stays behind until its events have left the ring reads them from the log:
//!
//! ```text
//!              event matches                      ring passes its mark
//!  Synced ───────────────────────► Behind (ring) ──────────────────────► Behind (log)
//!    ▲                                 │ reads to the end                     │ reads to the ring, or
//!    └─────────────────────────────────┴──────────────────────────────────────┘ is compacted: cancelled
//! ```
//!
//! Writers that never wait would run ahead of many watchers by as much as the ring holds, and every event would come
//! late. So the hub counts the deliveries that watchers who keep up still have to take, and the writer waits while
//! there are more than a few. Who takes nothing while the writer waits is not waited for again before it is synced.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::index::Entry;
use crate::key::{Key, KeyRange};
use crate::revision::Revision;

/// A published change.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
    /// Empty on deletes.
    pub(crate) value: Bytes,
    /// What the key was before; `None` if it did not exist.
    pub(crate) previous: Option<Entry>,
}

/// Which events a watcher wants.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    pub(crate) keys: KeyRange,
    pub(crate) puts: bool,
    pub(crate) deletes: bool,
}

impl Interest {
    pub(crate) fn matches(&self, key: &[u8], entry: &Entry) -> bool {
        (if entry.is_tombstone() { self.deletes } else { self.puts }) && self.keys.contains(key)
    }
}

/// Names a watcher of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatcherId(u64);

/// Deliveries to watchers that may be outstanding when the writer goes on: enough for a batch of writes to some
/// watchers each, little enough to be taken in some milliseconds.
const OUTSTANDING: usize = 256;

/// What a watcher has to do next.
#[derive(Debug)]
pub(crate) enum Due {
    /// Nothing: it has seen everything up to the published revision.
    Nothing,
    /// Hand on these events.
    Events(Vec<Arc<Event>>),
    /// Read the log from this revision on, then tell [`Hub::advance`] how far it got.
    Log { from: Revision },
}

/// How far watchers are behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lag {
    pub(crate) watchers: usize,
    /// Those that have events to come.
    pub(crate) behind: usize,
    /// Revisions from the first one that the slowest has not seen to the published one.
    pub(crate) revisions: i64,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Hub {
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    capacity: usize,
    /// Every event from this revision on is in the ring.
    oldest: Revision,
    published: Revision,
    watchers: BTreeMap<WatcherId, Watcher>,
    next: u64,
    /// Deliveries that are owed to the watchers that are waited for.
    outstanding: usize,
    /// Counts the writer's waits.
    wait: u64,
    /// Wakes the writer when few enough deliveries are outstanding.
    drained: Arc<Condvar>,
}

#[derive(Debug)]
struct Watcher {
    interest: Interest,
    /// First revision that it wants.
    start: Revision,
    /// First revision that it wants and has not got; `None` when it is synced.
    behind: Option<Revision>,
    pace: Pace,
    wake: Arc<Notify>,
}

/// Whether writers wait for a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// It takes what comes: this many events of the ring are owed to it. `taken` is the writer's wait in which it took
    /// the last one.
    Counted { owed: usize, taken: u64 },
    /// It is left behind until it is synced.
    Lagging,
}

impl Pace {
    const SYNCED: Self = Self::Counted { owed: 0, taken: 0 };

    fn owed(self) -> usize {
        match self {
            Self::Counted { owed, .. } => owed,
            Self::Lagging => 0,
        }
    }
}

impl Hub {
    /// A hub whose ring holds about `capacity` bytes.
    pub(crate) fn new(published: Revision, capacity: usize) -> Self {
        Self {
            ring: VecDeque::new(),
            ring_bytes: 0,
            capacity,
            oldest: published.next(),
            published,
            watchers: BTreeMap::new(),
            next: 0,
            outstanding: 0,
            wait: 0,
            drained: Arc::default(),
        }
    }

    /// Adds a watcher that wants everything from `start` on (zero: from now on). Returns it with the revision that is
    /// published at this moment.
    pub(crate) fn watch(&mut self, interest: Interest, start: Revision, wake: Arc<Notify>) -> (WatcherId, Revision) {
        let id = WatcherId(self.next);
        self.next += 1;
        let behind = (start > Revision::ZERO && start <= self.published).then_some(start);
        let start = if start > Revision::ZERO { start } else { self.published.next() };
        let pace = if behind.is_some() { Pace::Lagging } else { Pace::SYNCED };
        self.watchers.insert(id, Watcher { interest, start, behind, pace, wake });
        (id, self.published)
    }

    pub(crate) fn unwatch(&mut self, id: WatcherId) {
        if let Some(gone) = self.watchers.remove(&id) {
            self.deliver(gone.pace.owed());
        }
    }

    /// Publishes events, oldest first.
    pub(crate) fn publish(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let revision = event.entry.modified;
            for watcher in self.watchers.values_mut() {
                let Pace::Counted { owed, .. } = &mut watcher.pace else { continue };
                if revision < watcher.start || !watcher.interest.matches(&event.key, &event.entry) {
                    continue;
                }
                *owed += 1;
                self.outstanding += 1;
                if watcher.behind.is_none() {
                    watcher.behind = Some(revision);
                    watcher.wake.notify_one();
                }
            }
            self.published = revision;
            self.ring_bytes += cost(&event);
            self.ring.push_back(Arc::new(event));
            while self.ring_bytes > self.capacity
                && let Some(gone) = self.ring.pop_front()
            {
                self.ring_bytes -= cost(&gone);
                self.oldest = gone.entry.modified.next();
            }
        }
    }

    /// What a watcher has to do next; events that it returns count as handed on. At most `limit` of them, and about
    /// `bytes` of values.
    pub(crate) fn next(&mut self, id: WatcherId, limit: usize, bytes: usize) -> Due {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Due::Nothing };
        let Some(from) = watcher.behind else { return Due::Nothing };
        let owed = watcher.pace.owed();
        if from < self.oldest {
            watcher.pace = Pace::Lagging;
            self.deliver(owed);
            return Due::Log { from };
        }
        let mut events = Vec::new();
        let mut size = 0;
        watcher.behind = None;
        for event in matching(&self.ring, &watcher.interest, from) {
            if events.len() >= limit || size >= bytes {
                watcher.behind = Some(event.entry.modified);
                break;
            }
            size += event.value.len();
            events.push(event.clone());
        }
        watcher.pace = match watcher.pace {
            _ if watcher.behind.is_none() => Pace::SYNCED,
            Pace::Counted { owed, .. } => Pace::Counted { owed: owed - events.len(), taken: self.wait },
            Pace::Lagging => Pace::Lagging,
        };
        let left = watcher.pace.owed();
        self.deliver(owed - left);
        if events.is_empty() { Due::Nothing } else { Due::Events(events) }
    }

    /// Notes that a watcher has got everything up to and including `through`, from the log or of what [`Hub::next`] gave it.
    pub(crate) fn advance(&mut self, id: WatcherId, through: Revision) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let next = through.next();
        let owed = watcher.pace.owed();
        let (behind, left) = if next < self.oldest {
            (Some(next), None)
        } else {
            let mut events = matching(&self.ring, &watcher.interest, next);
            (events.next().map(|event| event.entry.modified), Some(1 + events.count()))
        };
        watcher.pace = match (watcher.pace, left) {
            _ if behind.is_none() => Pace::SYNCED,
            (Pace::Counted { .. }, Some(owed)) => Pace::Counted { owed, taken: self.wait },
            _ => Pace::Lagging,
        };
        watcher.behind = behind;
        self.outstanding += watcher.pace.owed();
        self.deliver(owed);
    }

    /// Begins a wait of the writer, if there is something to wait for; see [`Hub::is_ahead`].
    pub(crate) fn begin_wait(&mut self) -> Option<Arc<Condvar>> {
        self.wait += 1;
        self.is_ahead().then(|| Arc::clone(&self.drained))
    }

    /// Whether more deliveries are outstanding than the writer may run ahead.
    pub(crate) fn is_ahead(&self) -> bool {
        self.outstanding > OUTSTANDING
    }

    /// Gives up on watchers that took nothing since the wait began.
    pub(crate) fn end_wait(&mut self) {
        let wait = self.wait;
        let mut given_up = 0;
        for watcher in self.watchers.values_mut() {
            if let Pace::Counted { owed: owed @ 1.., taken } = watcher.pace
                && taken != wait
            {
                watcher.pace = Pace::Lagging;
                given_up += owed;
            }
        }
        self.outstanding -= given_up;
    }

    /// Takes deliveries from the count, and lets the writer go on.
    fn deliver(&mut self, count: usize) {
        let was_ahead = self.is_ahead();
        self.outstanding -= count;
        if was_ahead && !self.is_ahead() {
            self.drained.notify_one();
        }
    }

    /// The published revision, if all these watchers have seen everything up to it. A watcher that starts in the
    /// future is not yet there, as in etcd.
    pub(crate) fn progress(&self, mut ids: impl Iterator<Item = WatcherId>) -> Option<Revision> {
        let synced =
            |id| self.watchers.get(&id).is_some_and(|w| w.behind.is_none() && w.start <= self.published.next());
        ids.all(synced).then_some(self.published)
    }

    /// How far watchers are behind. A walk over all of them.
    pub(crate) fn lag(&self) -> Lag {
        let behind = || self.watchers.values().filter_map(|watcher| watcher.behind);
        let slowest = behind().min().unwrap_or(self.published.next());
        let revisions = self.published.next().0 - slowest.0;
        Lag { watchers: self.watchers.len(), behind: behind().count(), revisions }
    }

    pub(crate) fn published(&self) -> Revision {
        self.published
    }
}

fn cost(event: &Event) -> usize {
    event.value.len() + size_of::<Event>()
}

/// The events of the ring from a revision on that match.
fn matching<'a>(
    ring: &'a VecDeque<Arc<Event>>,
    interest: &'a Interest,
    from: Revision,
) -> impl Iterator<Item = &'a Arc<Event>> {
    let first = ring.partition_point(|event| event.entry.modified < from);
    ring.range(first..).filter(|event| interest.matches(&event.key, &event.entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::LeaseId;

    fn put(key: &'static str, revision: i64) -> Event {
        let entry =
            Entry { modified: Revision(revision), created: Revision(revision), version: 1, lease: LeaseId::NONE };
        Event { key: Key::from_static(key.as_bytes()), entry, value: Bytes::from_static(b"v"), previous: None }
    }

    fn delete(key: &'static str, revision: i64) -> Event {
        Event { entry: Entry::tombstone(Revision(revision)), value: Bytes::new(), ..put(key, revision) }
    }

    fn prefix_a() -> Interest {
        let keys = KeyRange::new(Key::from_static(b"a"), Key::from_static(b"b"));
        Interest { keys, puts: true, deletes: true }
    }

    fn revisions(due: Due) -> Vec<i64> {
        match due {
            Due::Events(events) => events.iter().map(|event| event.entry.modified.0).collect(),
            Due::Nothing => Vec::new(),
            Due::Log { from } => panic!("must read the log from {from}"),
        }
    }

    #[test]
    fn a_watcher_sees_each_matching_event_once_in_order() {
        let mut hub = Hub::new(Revision(1), 1 << 20);
        let (id, now) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        assert_eq!(now, Revision(1));
        hub.publish([put("a1", 2), put("b", 3), put("a2", 4), delete("a1", 5)]);
        assert_eq!(revisions(hub.next(id, 2, usize::MAX)), [2, 4]);
        assert_eq!(hub.progress([id].into_iter()), None);
        assert_eq!(revisions(hub.next(id, 2, usize::MAX)), [5]);
        assert_eq!(hub.progress([id].into_iter()), Some(Revision(5)));
        assert_eq!(revisions(hub.next(id, 2, usize::MAX)), [0; 0]);
    }

    #[test]
    fn filters_drop_puts_or_deletes() {
        let mut hub = Hub::new(Revision(1), 1 << 20);
        let (no_puts, _) = hub.watch(Interest { puts: false, ..prefix_a() }, Revision::ZERO, Arc::default());
        let (no_deletes, _) = hub.watch(Interest { deletes: false, ..prefix_a() }, Revision::ZERO, Arc::default());
        hub.publish([put("a", 2), delete("a", 3)]);
        assert_eq!(revisions(hub.next(no_puts, 9, usize::MAX)), [3]);
        assert_eq!(revisions(hub.next(no_deletes, 9, usize::MAX)), [2]);
    }

    #[test]
    fn a_watcher_may_start_in_the_future_or_in_the_ring() {
        let mut hub = Hub::new(Revision(1), 1 << 20);
        let (future, _) = hub.watch(prefix_a(), Revision(4), Arc::default());
        assert_eq!(hub.progress([future].into_iter()), None);
        hub.publish([put("a", 2), put("a", 3), put("a", 4)]);
        assert_eq!(revisions(hub.next(future, 9, usize::MAX)), [4]);
        let (past, _) = hub.watch(prefix_a(), Revision(3), Arc::default());
        assert_eq!(revisions(hub.next(past, 9, usize::MAX)), [3, 4]);
    }

    #[test]
    fn a_slow_watcher_reads_the_log_and_comes_back_to_the_ring() {
        let mut hub = Hub::new(Revision(1), 2 * cost(&put("a", 0)));
        let (id, _) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        hub.publish((2..=6).map(|revision| put("a", revision)));
        assert_eq!(hub.lag(), Lag { watchers: 1, behind: 1, revisions: 5 });
        assert!(matches!(hub.next(id, 9, usize::MAX), Due::Log { from: Revision(2) }));
        hub.advance(id, Revision(3));
        assert!(matches!(hub.next(id, 9, usize::MAX), Due::Log { from: Revision(4) }));
        hub.publish([put("a", 7)]);
        hub.advance(id, Revision(6));
        assert_eq!(revisions(hub.next(id, 9, usize::MAX)), [7]);
        assert_eq!(hub.progress([id].into_iter()), Some(Revision(7)));
        assert_eq!(hub.lag(), Lag { watchers: 1, behind: 0, revisions: 0 });
    }

    /// Publishes one event more than the writer may be ahead with `watchers`, from `first` on.
    fn run_ahead(hub: &mut Hub, watchers: usize, first: i64) {
        let events = i64::try_from(OUTSTANDING / watchers + 1).unwrap();
        hub.publish((first..first + events).map(|revision| put("a", revision)));
    }

    #[test]
    fn the_writer_waits_until_watchers_have_taken_most_of_what_is_published() {
        let mut hub = Hub::new(Revision(1), 1 << 20);
        let [one, other] = [(); 2].map(|()| hub.watch(prefix_a(), Revision::ZERO, Arc::default()).0);
        hub.publish([put("a", 2)]);
        assert!(hub.begin_wait().is_none());
        run_ahead(&mut hub, 2, 3);
        assert!(hub.begin_wait().is_some());
        hub.next(one, 9, usize::MAX);
        assert!(!hub.is_ahead());
        hub.unwatch(other);
        hub.next(one, usize::MAX, usize::MAX);
        assert_eq!(hub.outstanding, 0);
    }

    #[test]
    fn a_watcher_that_takes_nothing_is_waited_for_once() {
        let mut hub = Hub::new(Revision(1), 1 << 20);
        let (id, _) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        run_ahead(&mut hub, 1, 2);
        assert!(hub.begin_wait().is_some());
        hub.end_wait();
        assert!(!hub.is_ahead());
        run_ahead(&mut hub, 1, 1000);
        assert!(hub.begin_wait().is_none());
        // Once it has caught up, it is waited for again.
        hub.next(id, usize::MAX, usize::MAX);
        run_ahead(&mut hub, 1, 2000);
        assert!(hub.begin_wait().is_some());
    }

    #[test]
    fn a_watcher_that_takes_some_is_waited_for_again() {
        let mut hub = Hub::new(Revision(1), 1 << 20);
        let (id, _) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        run_ahead(&mut hub, 1, 2);
        run_ahead(&mut hub, 1, 1000);
        assert!(hub.begin_wait().is_some());
        hub.next(id, 1, usize::MAX);
        hub.end_wait();
        assert!(hub.begin_wait().is_some());
    }

    #[test]
    fn watchers_of_the_past_and_those_that_the_ring_has_passed_hold_up_no_writer() {
        let mut hub = Hub::new(Revision(1), 20 * cost(&put("a", 0)));
        let (slow, _) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        run_ahead(&mut hub, 1, 2);
        let (past, _) = hub.watch(prefix_a(), Revision(2), Arc::default());
        assert!(matches!(hub.next(slow, 9, usize::MAX), Due::Log { .. }));
        assert!(hub.begin_wait().is_none());
        let published = hub.published();
        for id in [slow, past] {
            hub.advance(id, published);
        }
        assert_eq!(hub.progress([slow, past].into_iter()), Some(published));
        assert_eq!(hub.outstanding, 0);
    }

    #[test]
    fn other_keys_do_not_push_a_synced_watcher_behind() {
        let mut hub = Hub::new(Revision(1), 2 * cost(&put("b", 0)));
        let (id, _) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        hub.publish((2..=9).map(|revision| put("b", revision)));
        assert!(matches!(hub.next(id, 9, usize::MAX), Due::Nothing));
        assert_eq!(hub.progress([id].into_iter()), Some(Revision(9)));
    }
}
