//! What a watcher gets: events from the ring, or changes from the log once the ring has gone past it.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::RequestError;
use crate::index::Change;
use crate::range::KeyValue;
use crate::revision::Revision;
use crate::store::Store;
use crate::watch::{Due, Event, Interest, WatcherId};

/// Changes in one step and bytes of values, those before included, unless one change alone has more. So a response is
/// never so large that etcd would cut it into fragments.
const CHANGES: usize = 256;
const BYTES: usize = 64 << 10;
/// Rows of the log whose values are read at once.
const CHUNK: usize = 16;

/// A change with all that a watcher is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The key after the change; a tombstone if it was deleted.
    pub(crate) kv: KeyValue,
    /// The key before the change, if the watcher wants it, it existed, and compaction has left it.
    pub(crate) previous: Option<KeyValue>,
}

/// The next step of a watcher.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has seen everything up to the published revision.
    UpToDate,
    /// These come next; it has then seen everything up to `through`. There may be none: then only `through` moved.
    Changes { changes: Vec<Delivery>, through: Revision },
    /// What comes next has been compacted up to this revision: the watch ends.
    Compacted(Revision),
}

impl Store {
    /// Takes a watcher's next step. Changes that it returns count as handed on.
    pub(crate) async fn follow(
        &self,
        watcher: WatcherId,
        interest: &Interest,
        with_previous: bool,
    ) -> Result<Step, RequestError> {
        let due = self.hub().next(watcher, CHANGES, BYTES);
        let (events, through) = match due {
            Due::Nothing => return Ok(Step::UpToDate),
            Due::Events(events) => {
                let through = events.last().map_or(Revision::ZERO, |last| last.entry.modified);
                (events, through)
            }
            Due::Log { from } => match self.backlog(interest, from).await? {
                Backlog::Compacted(revision) => return Ok(Step::Compacted(revision)),
                Backlog::Events { events, through } => {
                    self.hub().advance(watcher, through);
                    (events, through)
                }
            },
        };
        // As in etcd, what a change up to the compacted revision has replaced is gone, even if it is still here:
        // kube-apiserver takes the missing value for the end of its watch.
        let compacted = self.state().compacted;
        let replaced = |event: &Event| event.previous.filter(|_| with_previous && event.entry.modified > compacted);
        let mut changes: Vec<Delivery> = Vec::with_capacity(events.len());
        let mut size = 0;
        for chunk in events.chunks(CHUNK) {
            let rows = chunk.iter().filter_map(|event| Some((event.key.clone(), replaced(event)?.modified)));
            let mut values = self.values(rows.collect()).await?.into_iter();
            for event in chunk {
                let key = event.key.clone();
                let before = replaced(event).and_then(|entry| Some((entry, values.next().flatten()?)));
                size += event.value.len() + before.as_ref().map_or(0, |(_, value)| value.len());
                if size > BYTES
                    && let Some(last) = changes.last()
                {
                    // The rest comes with the next step.
                    let through = last.kv.entry.modified;
                    self.hub().advance(watcher, through);
                    return Ok(Step::Changes { changes, through });
                }
                changes.push(Delivery {
                    previous: before.map(|(entry, value)| KeyValue { key: key.clone(), entry, value }),
                    kv: KeyValue { key, entry: event.entry, value: event.value.clone() },
                });
            }
        }
        Ok(Step::Changes { changes, through })
    }

    /// The oldest changes from a revision on that a watcher wants.
    async fn backlog(&self, interest: &Interest, from: Revision) -> Result<Backlog, RequestError> {
        'again: loop {
            let (found, end, removals) = {
                let state = self.state();
                if from < state.compacted {
                    return Ok(Backlog::Compacted(state.compacted));
                }
                let found = state.index.changes(&interest.keys, from, state.published, CHANGES);
                let end = match found.last() {
                    Some(last) if found.len() == CHANGES => last.entry.modified,
                    _ => state.published,
                };
                (found, end, state.removals)
            };
            let wanted: Vec<_> = found.into_iter().filter(|c| interest.matches(&c.key, &c.entry)).collect();
            let mut events: Vec<Arc<Event>> = Vec::new();
            let mut size = 0;
            for chunk in wanted.chunks(CHUNK) {
                if size >= BYTES
                    && let Some(last) = events.last()
                {
                    let through = last.entry.modified;
                    return Ok(Backlog::Events { events, through });
                }
                match self.events(chunk).await? {
                    Some(chunk) => {
                        size += chunk.iter().map(|event| event.value.len()).sum::<usize>();
                        events.extend(chunk);
                    }
                    None if self.state().removals.explain(removals) => continue 'again,
                    None => return Err(self.lost_row()),
                }
            }
            return Ok(Backlog::Events { events, through: end });
        }
    }

    /// Changes with their values; `None` if compaction has deleted one of the rows.
    async fn events(&self, changes: &[Change]) -> Result<Option<Vec<Arc<Event>>>, RequestError> {
        let live = changes.iter().filter(|change| !change.entry.is_tombstone());
        let rows = live.map(|change| (change.key.clone(), change.entry.modified)).collect();
        let mut values = self.values(rows).await?.into_iter();
        let event = |change: &Change| {
            let value = if change.entry.is_tombstone() { Bytes::new() } else { values.next()?? };
            let Change { key, entry, previous } = change.clone();
            Some(Arc::new(Event { key, entry, value, previous }))
        };
        Ok(changes.iter().map(event).collect())
    }
}

/// What the log has for a watcher that the ring has left behind.
enum Backlog {
    /// In order; everything that it wants up to and including `through`.
    Events { events: Vec<Arc<Event>>, through: Revision },
    /// The start is older than what the log still has.
    Compacted(Revision),
}
