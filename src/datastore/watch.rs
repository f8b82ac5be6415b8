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

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

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
}

#[derive(Debug)]
struct Watcher {
    interest: Interest,
    /// First revision that it wants.
    start: Revision,
    /// First revision that it wants and has not got; `None` when it is synced.
    behind: Option<Revision>,
    wake: Arc<Notify>,
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
        }
    }

    /// Adds a watcher that wants everything from `start` on (zero: from now on). Returns it with the revision that is
    /// published at this moment.
    pub(crate) fn watch(&mut self, interest: Interest, start: Revision, wake: Arc<Notify>) -> (WatcherId, Revision) {
        let id = WatcherId(self.next);
        self.next += 1;
        let behind = (start > Revision::ZERO && start <= self.published).then_some(start);
        let start = if start > Revision::ZERO { start } else { self.published.next() };
        self.watchers.insert(id, Watcher { interest, start, behind, wake });
        (id, self.published)
    }

    pub(crate) fn unwatch(&mut self, id: WatcherId) {
        self.watchers.remove(&id);
    }

    /// Publishes events, oldest first.
    pub(crate) fn publish(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let revision = event.entry.modified;
            for watcher in self.watchers.values_mut() {
                if watcher.behind.is_none()
                    && revision >= watcher.start
                    && watcher.interest.matches(&event.key, &event.entry)
                {
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
        let Some(Watcher { interest, behind, .. }) = self.watchers.get_mut(&id) else { return Due::Nothing };
        let Some(from) = *behind else { return Due::Nothing };
        if from < self.oldest {
            return Due::Log { from };
        }
        let mut events = Vec::new();
        let mut size = 0;
        *behind = None;
        for event in matching(&self.ring, interest, from) {
            if events.len() >= limit || size >= bytes {
                *behind = Some(event.entry.modified);
                break;
            }
            size += event.value.len();
            events.push(event.clone());
        }
        if events.is_empty() { Due::Nothing } else { Due::Events(events) }
    }

    /// Notes that a watcher got everything up to and including `through` from the log.
    pub(crate) fn advance(&mut self, id: WatcherId, through: Revision) {
        let Some(Watcher { interest, behind, .. }) = self.watchers.get_mut(&id) else { return };
        let next = through.next();
        *behind = if next < self.oldest {
            Some(next)
        } else {
            matching(&self.ring, interest, next).next().map(|event| event.entry.modified)
        };
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

    #[test]
    fn other_keys_do_not_push_a_synced_watcher_behind() {
        let mut hub = Hub::new(Revision(1), 2 * cost(&put("b", 0)));
        let (id, _) = hub.watch(prefix_a(), Revision::ZERO, Arc::default());
        hub.publish((2..=9).map(|revision| put("b", revision)));
        assert!(matches!(hub.next(id, 9, usize::MAX), Due::Nothing));
        assert_eq!(hub.progress([id].into_iter()), Some(Revision(9)));
    }
}
